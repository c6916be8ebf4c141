"""The test vectors of the audit log (audit-log.md, "Test vectors")."""

import base64
import json
import os
import tempfile

import auditlog
import evidence


def check(path):
    """Yields (name of the vector, what is wrong or None)."""
    with open(path, encoding="utf-8") as f:
        document = json.load(f)
    for v in document["vectors"]:
        yield v["name"], _check_one(v, v.get("keys", document["keys"]))


def _check_one(v, keys):
    with tempfile.TemporaryDirectory() as folder:
        for s in v["segments"]:
            data = bytearray(s["size"])
            for part in s["parts"]:
                raw = base64.b64decode(part["data"])
                data[part["at"] : part["at"] + len(raw)] = raw
            with open(os.path.join(folder, s["name"]), "wb") as f:
                f.write(data)
        try:
            read = evidence.read_keys(json.dumps(keys).encode())
            seen = [s.encode() for s in v.get("seen", [])]
            report = auditlog.LogVerifier(folder, read, v.get("pruned", False), seen).verify()
        except auditlog.CANT_LOOK as e:
            return None if v["status"] == 1 else f"couldn't look: {e}"
    found = "; ".join(map(str, report.findings)) or "no finding"
    if report.exit_status() != v["status"]:
        return f"status {report.exit_status()}, not {v['status']}: {found}"
    if "finding" in v and v["finding"] not in {f.kind for f in report.findings}:
        return f"not {v['finding']}: {found}"
    return None
