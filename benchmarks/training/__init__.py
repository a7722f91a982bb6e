"""What training and searching a supernet costs: `train_step`, then `candidates`."""
