"""Settings that commands, recipes and calls share."""
