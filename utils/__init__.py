"""What the scripts share. Nothing here imports a script."""

from utils.configs import PrenetConfig, RNNConfig

__all__ = ["PrenetConfig", "RNNConfig"]
