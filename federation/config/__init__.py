"""Every setting there is: key, type, default, range, unit and meaning. The YAML in `conf/` only chooses values.

One configuration group is one frozen dataclass. `federation/compose.py` reads and overrides the YAML with Hydra and
binds the result here, so an unknown key, a wrong type or a value out of range is refused before anything starts.
"""

from sovfed.federation.config.data import BAD_ROWS, LEAST_SPREAD, REST, DataConfig, StudyConfig, Versioned
from sovfed.federation.config.order import OrderConfig
from sovfed.federation.config.protection import (
    ANNUAL_EPSILON,
    LANE_BITS,
    SECURE_COHORT,
    SHARE_PER_RUN,
    USUAL_DELTA,
    PrivacyConfig,
    SecaggConfig,
)
from sovfed.federation.config.run import Config, stored, told
from sovfed.federation.config.services import (
    LEAST_LOG_DAYS,
    MESSAGE_BYTES_MAX,
    PORT_MAX,
    ClientConfig,
    ClusterConfig,
    ServerConfig,
    TrackingConfig,
    check_log_days,
)
from sovfed.federation.config.simulation import PartitionConfig, SimulationConfig
from sovfed.federation.config.training import STRATEGIES, StrategyConfig, TaskConfig

__all__ = [
    "ANNUAL_EPSILON", "BAD_ROWS", "LANE_BITS", "LEAST_LOG_DAYS", "LEAST_SPREAD", "MESSAGE_BYTES_MAX", "PORT_MAX",
    "REST", "SECURE_COHORT", "SHARE_PER_RUN", "STRATEGIES", "USUAL_DELTA",
    "ClientConfig", "ClusterConfig", "Config", "DataConfig", "OrderConfig", "PartitionConfig", "PrivacyConfig",
    "SecaggConfig", "ServerConfig", "SimulationConfig", "StrategyConfig", "StudyConfig", "TaskConfig", "TrackingConfig",
    "Versioned", "check_log_days", "stored", "told",
]  # fmt: skip
