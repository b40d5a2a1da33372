"""One door to the core's services."""

from typing import overload

from training_fsm.core.agent_training_service import AgentTrainingConfig, AgentTrainingService
from training_fsm.core.split_service import SplitService
from training_fsm.core.trading_env import BaseTradingEnv, TradingEnv


class CoreEngine:
    """Hands out the services by their type, with the configuration that it was made with."""

    def __init__(self, config: AgentTrainingConfig | None = None, env_class: type[BaseTradingEnv] = TradingEnv) -> None:
        self._config, self._env_class = config, env_class

    @overload
    def get_service(self, service: type[SplitService]) -> SplitService: ...

    @overload
    def get_service(self, service: type[AgentTrainingService]) -> AgentTrainingService: ...

    def get_service(
        self, service: type[SplitService] | type[AgentTrainingService]
    ) -> SplitService | AgentTrainingService:
        """A service of this type; raises LookupError for a type that the core does not have."""
        if service is SplitService:
            return SplitService()
        if service is AgentTrainingService:
            return AgentTrainingService(self._config, self._env_class)
        raise LookupError(f"expected SplitService or AgentTrainingService, got {service!r}")
