"""Everything slow that a training child imports, imported once by the server that children are forked off."""

import torch._inductor.config  # noqa: F401  (by torch.use_deterministic_algorithms: most of a second)

import training_fsm.client.feast_client
import training_fsm.core.agent
import training_fsm.core.backtest_report
import training_fsm.core.training_segment  # noqa: F401
