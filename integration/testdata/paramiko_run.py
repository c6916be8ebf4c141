"""Uses a host by the run's listener, as clients of SSH do that know no ProxyCommand: paramiko_run.py COMMAND [FOLDER]."""

import os
import sys

import paramiko

address = os.environ["DEPUTY_ADDRESS_WEB"]
host, port = address.rsplit(":", 1)
t = paramiko.Transport((host, int(port)))
t.start_client(timeout=20)
# The key is in the file before the first byte of SSH.
known = paramiko.HostKeys(os.environ["DEPUTY_SSH_KNOWN_HOSTS"])
if not known.check(f"[{host}]:{port}", t.get_remote_server_key()):
    sys.exit("another host key than the pinned one")
t.auth_none("deputy")
channel = t.open_session()
channel.exec_command(sys.argv[1])
sys.stdout.write(channel.makefile().read().decode())
sys.stderr.write(channel.makefile_stderr().read().decode())
code = channel.recv_exit_status()
for folder in sys.argv[2:]:
    print(sorted(paramiko.SFTPClient.from_transport(t).listdir(folder)))
t.close()
sys.exit(code)
