"""`python -m training_fsm` is `training-fsm`."""

from training_fsm.cli.app import main

main()
