"""Prints a Kubernetes secret as NAME=VALUE, each ended by a null byte: how launch/gke.sh reads one in a pod.

xpk can give pods no secret of their own accord, but their service account may ask the cluster for one, and is allowed
this one alone. So it stands neither in a command, nor in the workload's description, nor in a bucket.

  python3 launch/pod_secret.py SECRET
"""

import base64
import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes puts what a pod proves itself with


def read_secret(name: str, server: str, account: Path = ACCOUNT) -> dict[str, str]:
    """The variables that a secret of the pod's namespace holds. Raises OSError where it is not to be had."""
    namespace = (account / "namespace").read_text()
    request = urllib.request.Request(
        f"{server}/api/v1/namespaces/{namespace}/secrets/{name}",
        headers={"Authorization": f"Bearer {(account / 'token').read_text()}"},
    )
    context = ssl.create_default_context(cafile=account / "ca.crt") if server.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        data = json.load(answer).get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


if __name__ == "__main__":
    address = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    try:
        variables = read_secret(sys.argv[1], address)
    except OSError as error:
        sys.exit(f"error: the secret {sys.argv[1]} cannot be read: {error}")
    sys.stdout.write("".join(f"{key}={value}\0" for key, value in variables.items()))
