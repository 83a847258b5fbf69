"""One small process per container: it watches, logs, serves those who attach, and records the end."""

from bulle.monitor.attachment import Attached, Attachment, Outcome
from bulle.monitor.logs import LogEntry
from bulle.monitor.state import current_state, read_state

__all__ = ["Attached", "Attachment", "LogEntry", "Outcome", "current_state", "read_state"]
