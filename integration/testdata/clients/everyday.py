"""What the Python clients share: one line per operation, "name ok answer" or "name SQLSTATE message"."""


def operation(name, do, undo=lambda: None):
    """Runs do, prints its answer or its refusal, and leaves the connection usable by undo."""
    try:
        answer = do()
        line = f"{name} ok {answer}"
    except Exception as e:  # every library has classes of its own
        line = f"{name} {code(e)} {type(e).__name__}: {e}"
        undo()
    print(line.replace("\n", " "), flush=True)


def code(e):
    for inner in (e, getattr(e, "orig", None), e.__cause__):
        found = getattr(inner, "sqlstate", None) or getattr(inner, "pgcode", None)
        if found:
            return found
    return "error"


def rows(list_of_rows):
    return ",".join("|".join(str(v) for v in row) for row in list_of_rows)
