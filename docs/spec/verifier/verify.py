#!/usr/bin/env python3
"""Verifies Deputy's credentials and logs, written from docs/spec alone.

  verify.py vectors DIR                   judge the test vectors of credential.md
  verify.py logs FILE                     judge the test vectors of audit-log.md
  verify.py log --keys FILE DIR...        verify audit logs, as `deputy audit verify` does
  verify.py batch DIR                     judge cases from standard input, one JSON object a line

Needs Python 3.9 and the package cryptography. Exit status of log: see audit-log.md.
"""

import argparse
import json
import sys

import auditlog
import evidence
import logvectors
import vectors


def run_vectors(args):
    total, wrong = 0, 0
    for name, difference in vectors.check(args.folder):
        total += 1
        if difference:
            wrong += 1
            print(f"{name}: {difference}")
    print(f"{total - wrong} of {total} vectors judged as they say")
    return 1 if wrong or not total else 0


def run_logs(args):
    total, wrong = 0, 0
    for name, difference in logvectors.check(args.file):
        total += 1
        if difference:
            wrong += 1
            print(f"{name}: {difference}")
    print(f"{total - wrong} of {total} logs judged as they say")
    return 1 if wrong or not total else 0


def _verify_log(folder, keys_file, pruned=False, seen=()):
    with open(keys_file, "rb") as f:
        keys = evidence.read_keys(f.read())
    notes = []
    for path in seen:
        with open(path, "rb") as f:
            notes.append(f.read())
    return auditlog.LogVerifier(folder, keys, pruned, notes).verify()


_CANT_LOOK = auditlog.CANT_LOOK


def run_log(args):
    worst, seen = 0, 0
    for folder in args.folders:
        try:
            report = _verify_log(folder, args.keys, args.pruned, args.seen)
            seen += report.seen
        except _CANT_LOOK as e:
            print(f"couldn't look at {folder}: {e}", file=sys.stderr)
            return 1
        _print_report(report)
        status = report.exit_status()
        worst = status if worst != 2 and status else worst
    if seen < len(args.seen):
        print("a checkpoint of a log was given with --seen, but that log wasn't", file=sys.stderr)
        return 1
    return worst


def _print_report(report):
    verdict = "DOES NOT HOLD" if report.findings else "VERIFIED, but for a torn tail" if report.torn else "VERIFIED"
    print(f"{report.folder}: {verdict}")
    print(f"  log          {report.origin}")
    print(f"  records      {report.records} in {report.frames} frames")
    print(f"  credentials  {report.credentials} verified again")
    for line in report.told:
        print(f"  told         {line}")
    for finding in report.findings:
        print(f"  FINDING      {finding}")
    if report.checkpoint:
        print("  checkpoint")
        for line in report.checkpoint.decode().splitlines():
            print(f"    {line}")


def run_batch(args):
    """{"credential", "subject", "narrowing" or "matching": vector}, {"chain_statement": …, "call": …, "now": …} or {"log": folder, "keys": file}, to what came of it."""
    loaded = vectors.Vectors(args.folder)
    for line in sys.stdin:
        print(json.dumps(_case(loaded, json.loads(line))), flush=True)
    return 0


def _case(loaded, case):
    if "credential" in case:
        return loaded.credential(case["credential"])
    if "subject" in case:
        return loaded.subject(case["subject"])
    if "narrowing" in case:
        return {"class": vectors.narrowing(case["narrowing"])}
    if "chain_statement" in case:
        return {"valid": loaded.chain_statement(case["chain_statement"], case["call"], case["now"])}
    if "matching" in case:
        return vectors.matching(case["matching"])
    try:
        report = _verify_log(case["log"], case["keys"], case.get("pruned", False), case.get("seen", ()))
    except _CANT_LOOK as e:
        return {"status": 1, "findings": [], "detail": str(e)}
    return {
        "status": report.exit_status(),
        "findings": [f.kind for f in report.findings],
        "detail": "; ".join(map(str, report.findings)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("vectors", help="judge the test vectors")
    command.add_argument("folder")
    command.set_defaults(run=run_vectors)
    command = commands.add_parser("logs", help="judge the test vectors of the audit log")
    command.add_argument("file")
    command.set_defaults(run=run_logs)
    command = commands.add_parser("log", help="verify audit logs")
    command.add_argument("--keys", required=True, help="the operator's list of public keys")
    command.add_argument("--pruned", action="store_true", help="the first segments were archived and removed")
    command.add_argument("--seen", action="append", default=[], help="file with a checkpoint that was seen before")
    command.add_argument("folders", nargs="+")
    command.set_defaults(run=run_log)
    command = commands.add_parser("batch", help="judge cases from standard input")
    command.add_argument("folder", help="the vectors, for what the verifier of credentials believes")
    command.set_defaults(run=run_batch)
    args = parser.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
