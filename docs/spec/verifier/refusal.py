"""The one exception that every rule of the credential raises when it is broken."""


class Refused(Exception):
    """A refusal with its class (credential.md, section 13) and, where there is one, its hop."""

    def __init__(self, cls, detail="", hop=None):
        super().__init__(f"{cls}: {detail}" if detail else cls)
        self.cls = cls
        self.detail = detail
        self.hop = hop


def demand(holds, cls, detail=""):
    if not holds:
        raise Refused(cls, detail)
