"""Files and directories of ours, whatever they hold: where they may lie, how they appear whole, how damage is seen."""
