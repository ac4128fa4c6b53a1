MADE_OF: str
NOT_MINE: int
GO_ON: int
SCANNED: int
RECEIVE_FAILED: int
SEND_FAILED: int
MIN_FREE_BYTES: int
MIN_MESSAGE_BYTES: int
MAX_FREE_BUFFERS: int
MAX_COPIED_BYTES: int
FEW: int
FEW_COMMANDS: int
CALM_STEPS: int
SMALL_BYTES: int
MAX_JOB_BYTES: int
MAX_KEPT_BYTES: int
RANGED_COMMANDS: int

class Pump:
    error: int
    def __init__(self, **terms: object) -> None: ...
    def requests(self) -> int: ...
    def replies(self) -> int: ...
    def scan_requests(self) -> bool: ...
    def scan_replies(self) -> bool: ...
