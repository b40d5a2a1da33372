"""Code that travels with an exported model: numpy and pandas, and nothing of training_fsm."""
