"""What a run is told: `config` (all fields, checked and read from JSON), `presets` (by name)."""
