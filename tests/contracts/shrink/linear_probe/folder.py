"""The checkpoint of an encoder."""

from tests.contracts.encoder_checkpoint import prepare

__all__ = ["prepare"]
