"""Fields of other projects' kinds, as far as our manifests use them, where no package of Python has their schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FREE: dict[str, Any] = {"*": {}}
REQUIREMENTS = [{"key": None, "operator": None, "values": None}]
FIELDS: dict[str, dict[str, Any]] = {
    "PodDefault.kubeflow.org/v1alpha1": {
        "spec": {
            "desc": None,
            "selector": {"matchLabels": FREE},
            "env": [{"name": None, "value": None}],
            "volumes": None,
            "volumeMounts": None,
        }
    },
    "RayCluster.ray.io/v1": {
        "spec": {
            "rayVersion": None,
            "enableInTreeAutoscaling": None,
            "autoscalerOptions": {"idleTimeoutSeconds": None},
            "headGroupSpec": {"rayStartParams": FREE, "template": None},
            "workerGroupSpecs": [
                {
                    "groupName": None,
                    "replicas": None,
                    "minReplicas": None,
                    "maxReplicas": None,
                    "rayStartParams": FREE,
                    "template": None,
                }
            ],
        }
    },
    "ResourceFlavor.kueue.x-k8s.io/v1beta2": {"spec": {"nodeLabels": FREE, "tolerations": None}},
    "ClusterQueue.kueue.x-k8s.io/v1beta2": {
        "spec": {
            "namespaceSelector": {"matchLabels": FREE},
            "preemption": {"withinClusterQueue": None},
            "resourceGroups": [
                {
                    "coveredResources": None,
                    "flavors": [{"name": None, "resources": [{"name": None, "nominalQuota": None}]}],
                }
            ],
        }
    },
    "LocalQueue.kueue.x-k8s.io/v1beta2": {"spec": {"clusterQueue": None}},
    "WorkloadPriorityClass.kueue.x-k8s.io/v1beta2": {"value": None, "description": None},
    "NodePool.karpenter.sh/v1": {
        "spec": {
            "template": {
                "metadata": {"labels": FREE},
                "spec": {
                    "taints": [{"key": None, "value": None, "effect": None}],
                    "requirements": REQUIREMENTS,
                    "nodeClassRef": {"group": None, "kind": None, "name": None},
                    "expireAfter": None,
                },
            },
            "limits": FREE,
            "disruption": {"consolidationPolicy": None, "consolidateAfter": None},
        }
    },
    "EC2NodeClass.karpenter.k8s.aws/v1": {
        "spec": {
            "role": None,
            "amiSelectorTerms": [{"alias": None}],
            "subnetSelectorTerms": [{"tags": FREE}],
            "securityGroupSelectorTerms": [{"tags": FREE}],
            "blockDeviceMappings": [
                {"deviceName": None, "ebs": {"volumeSize": None, "volumeType": None, "encrypted": None}}
            ],
        }
    },
    "ExternalSecret.external-secrets.io/v1": {
        "spec": {
            "refreshInterval": None,
            "secretStoreRef": {"kind": None, "name": None},
            "target": {"name": None, "creationPolicy": None},
            "data": [{"secretKey": None, "remoteRef": {"key": None, "property": None}}],
        }
    },
}
"""Fields of other projects' kinds by kind and version, as far as our manifests use them, where no package of Python
brings their schema: Kubernetes' own hold none of these kinds, and would pass a misspelt field."""


def unknown(manifest: dict[str, Any]) -> Iterator[str]:
    """The fields of a manifest that its kind is not known to have."""
    kind = f"{manifest['kind']}.{manifest['apiVersion']}"
    yield from _unknown(manifest, {"apiVersion": None, "kind": None, "metadata": None, **FIELDS[kind]})


def _unknown(value: Any, known: Any, place: str = "") -> Iterator[str]:
    if isinstance(known, list) and isinstance(value, list):
        for item in value:
            yield from _unknown(item, known[0], place)
    elif isinstance(known, dict) and known is not FREE:
        assert isinstance(value, dict), place
        for key, item in value.items():
            if key in known:
                yield from _unknown(item, known[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
