"""What the Python client does at a cluster, with the run's own kubeconfig. Each line says what came of one operation."""

import base64
import json
import sys

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream

config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()


def say(name, what):
    print(f"{name}: {what}", flush=True)


def refused(name, operation):
    try:
        say(name, f"allowed: {operation()}")
    except ApiException as e:
        body = json.loads(e.body)
        say(name, f"{e.status} {body['reason']} {'record: ' in body['message']}")


say("version", client.VersionApi().get_code().major)
say("groups", "apps" in [g.name for g in client.ApisApi().get_api_versions().groups])
say("list", [p.metadata.name for p in core.list_namespaced_pod("shop").items])
core.create_namespaced_config_map("shop", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"color": "blue"}))
say("get", core.read_namespaced_config_map("py", "shop").data)
core.patch_namespaced_config_map("py", "shop", {"data": {"color": "red"}})
core.patch_namespaced_config_map("py", "shop", [{"op": "add", "path": "/data/size", "value": "1"}])
say("patch", dict(sorted(core.read_namespaced_config_map("py", "shop").data.items())))
w = watch.Watch()
for event in w.stream(core.list_namespaced_config_map, "shop", field_selector="metadata.name=py", timeout_seconds=30):
    say("watch", f"{event['type']} {event['object'].metadata.name}")
    if event["type"] == "DELETED":
        w.stop()
    else:
        core.delete_namespaced_config_map("py", "shop")
made = core.create_namespaced_config_map("shop", client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="py-")))
say("generated", made.metadata.name.startswith("py-"))
say("delete all", core.delete_collection_namespaced_config_map("shop", field_selector="metadata.name=none").kind)
secret = core.read_namespaced_secret("db", "shop")
say("secret", base64.b64decode(secret.data["password"]).decode())
secret.metadata.annotations, secret.metadata.managed_fields = None, None
refused("written back", lambda: core.replace_namespaced_secret("db", "shop", secret))
say("logs", core.read_namespaced_pod_log("web", "shop", tail_lines=1).strip())
out = stream(core.connect_get_namespaced_pod_exec, "web", "shop", command=["echo", "from inside"], stderr=True, stdin=False, stdout=True, tty=False)
say("exec", out.strip())
try:
    portforward(core.connect_get_namespaced_pod_portforward, "web", "shop", ports="1").close()
except ApiException as e:
    say("port-forward", e.reason)
refused("elsewhere", lambda: core.list_namespaced_pod("other"))
refused("a token", lambda: core.create_namespaced_service_account_token("other", "shop", client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=["x"]))))
try:
    stream(core.connect_get_namespaced_pod_exec, "web", "shop", command=["sh", "-c", "id"], stderr=True, stdin=False, stdout=True, tty=False)
except ApiException as e:
    say("a shell", f"{e.status or ''} {str(e.reason)[:60]}")
