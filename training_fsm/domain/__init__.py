"""The pure core: commands, events and the one state machine. No I/O."""
