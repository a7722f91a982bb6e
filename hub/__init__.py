"""Tools for the files that models come from and go to; nothing in the runtime imports this."""
