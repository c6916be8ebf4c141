"""Speaks to an agent's socket over a connection whose opener is dead and whose opener's process id belongs to one of that
agent's own processes by now. Needs root, to choose process ids.

  reuse.py own FIFO                    inside the agent: forks a process with each id that it is told
  reuse.py thief FIFO SOCKET PROBE     outside it: opens connections, tells the ids, and lets the probe speak
"""

import os
import socket
import sys
import time


def start_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def own(fifo):
    orders = open(fifo)
    while line := orders.readline():
        pid = int(line)
        for _ in range(50):
            with open("/proc/sys/kernel/ns_last_pid", "w") as f:
                f.write(str(pid - 1))
            child = os.fork()
            if child == 0:
                time.sleep(30 if os.getpid() == pid else 0)
                os._exit(0)
            if child == pid:
                break
            os.waitpid(child, 0)


def connect(path):
    """Returns a connection, its opener's id and start time; the opener has ended."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.recv(1, socket.MSG_PEEK)  # the other end has looked who is there
        socket.send_fds(there, [start_of(os.getpid()).encode()], [s.fileno()])
        os._exit(0)
    start, fds, _, _ = socket.recv_fds(here, 64, 1)
    os.waitpid(pid, 0)
    return fds[0], pid, start.decode()


def thief(fifo, path, probe):
    orders = open(fifo, "w", buffering=1)
    fd, same = -1, False
    for _ in range(100):
        fd, pid, start = connect(path)
        print(pid, file=orders)
        until = time.monotonic() + 1
        while (now := start_of(pid)) is None and time.monotonic() < until:
            pass
        if now is None:
            continue  # somebody else was given the id
        print("reused", pid, "started", start, "and", now, flush=True)
        same = start == now
        if same:
            break
    print("the start times are", "equal" if same else "different", flush=True)
    os.set_inheritable(fd, True)
    os.set_inheritable(orders.fileno(), True)  # the other one goes on until this is closed
    os.execv(probe, [probe, "borrow", str(fd)])


{"own": own, "thief": thief}[sys.argv[1]](*sys.argv[2:])
