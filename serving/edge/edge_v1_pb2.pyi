from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Payload(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKENS: _ClassVar[Payload]
    TRUNCATED: _ClassVar[Payload]
    SCALAR: _ClassVar[Payload]

class Ending(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Ending]
    STOP: _ClassVar[Ending]
    LENGTH: _ClassVar[Ending]
TOKENS: Payload
TRUNCATED: Payload
SCALAR: Payload
NONE: Ending
STOP: Ending
LENGTH: Ending

class FromDevice(_message.Message):
    __slots__ = ("open", "draft", "close", "correction")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    open: Open
    draft: Draft
    close: Close
    correction: Correction
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., correction: _Optional[_Union[Correction, _Mapping]] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("opened", "verdict", "share", "rejected")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    verdict: Verdict
    share: Share
    rejected: Rejected
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., share: _Optional[_Union[Share, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("snr_db", "token_seconds")
    SNR_DB_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    snr_db: float
    token_seconds: float
    def __init__(self, snr_db: _Optional[float] = ..., token_seconds: _Optional[float] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "prompt", "written", "max_new_tokens", "temperature", "seed", "drafter", "drafter_fingerprint", "tokenizer", "category", "report")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    session: str
    prompt: _containers.RepeatedScalarFieldContainer[int]
    written: _containers.RepeatedScalarFieldContainer[int]
    max_new_tokens: int
    temperature: float
    seed: int
    drafter: str
    drafter_fingerprint: str
    tokenizer: str
    category: str
    report: Report
    def __init__(self, session: _Optional[str] = ..., prompt: _Optional[_Iterable[int]] = ..., written: _Optional[_Iterable[int]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., drafter: _Optional[str] = ..., drafter_fingerprint: _Optional[str] = ..., tokenizer: _Optional[str] = ..., category: _Optional[str] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("vocab_size", "hertz", "noise_grows", "payload", "kept")
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HERTZ_FIELD_NUMBER: _ClassVar[int]
    NOISE_GROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    vocab_size: int
    hertz: float
    noise_grows: bool
    payload: Payload
    kept: int
    def __init__(self, vocab_size: _Optional[int] = ..., hertz: _Optional[float] = ..., noise_grows: _Optional[bool] = ..., payload: _Optional[_Union[Payload, str]] = ..., kept: _Optional[int] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("length", "share")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    length: int
    share: float
    def __init__(self, length: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("position", "accepted", "tokens", "next", "ending")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    position: int
    accepted: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    next: Turn
    ending: Ending
    def __init__(self, position: _Optional[int] = ..., accepted: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., next: _Optional[_Union[Turn, _Mapping]] = ..., ending: _Optional[_Union[Ending, str]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("share",)
    SHARE_FIELD_NUMBER: _ClassVar[int]
    share: float
    def __init__(self, share: _Optional[float] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("position", "tokens", "report", "distributions", "chances")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    CHANCES_FIELD_NUMBER: _ClassVar[int]
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    report: Report
    distributions: _containers.RepeatedCompositeFieldContainer[Distribution]
    chances: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., distributions: _Optional[_Iterable[_Union[Distribution, _Mapping]]] = ..., chances: _Optional[_Iterable[float]] = ...) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("ids", "weights")
    IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    weights: bytes
    def __init__(self, ids: _Optional[bytes] = ..., weights: _Optional[bytes] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("accepted", "share")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    share: float
    def __init__(self, accepted: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class Correction(_message.Message):
    __slots__ = ("position", "distribution")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    position: int
    distribution: Distribution
    def __init__(self, position: _Optional[int] = ..., distribution: _Optional[_Union[Distribution, _Mapping]] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
