"""JSON schemas of the custom resources of deploy/k8s/: the fields that are used, and no others.

Sources: Gateway API v1 (HTTPRoute), KEDA v1alpha1 (ScaledObject), LeaderWorkerSet v1.
"""

from typing import Any

Schema = dict[str, Any]

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}


def an_object(*optional: str, **members: Schema) -> Schema:
    """Schema of an object with these members and no others; all are required but those named in `optional`."""
    required = sorted(members.keys() - set(optional))
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


def a_list(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def a_resource(api_version: str, kind: str, spec: Schema) -> Schema:
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = an_object("labels", name=NAME, labels=labels)
    return an_object(apiVersion={"const": api_version}, kind={"const": kind}, metadata=metadata, spec=spec)


HTTP_ROUTE = a_resource(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    an_object(
        parentRefs=a_list(an_object(name=NAME)),
        rules=a_list(
            an_object(
                backendRefs=a_list(an_object(group=NAME, kind=TEXT, name=NAME)),
                timeouts=an_object(request=DURATION),
            )
        ),
    ),
)
METRICS_API = an_object(  # all values of a trigger's metadata are strings
    url={"type": "string", "pattern": r"^http://[a-z0-9-]+\.[a-z0-9-]+\.svc:[0-9]+/"},
    format={"enum": ["json", "prometheus", "xml", "yaml"]},
    valueLocation=TEXT,
    targetValue={"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
    aggregateFromKubeServiceEndpoints={"enum": ["true", "false"]},
    aggregationType={"enum": ["average", "sum", "max", "min"]},
)
SCALE_DOWN = an_object(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=a_list(an_object(type={"enum": ["Pods", "Percent"]}, value=COUNT, periodSeconds=COUNT)),
)
SCALED_OBJECT = a_resource(
    "keda.sh/v1alpha1",
    "ScaledObject",
    an_object(
        scaleTargetRef=an_object(name=NAME),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        advanced=an_object(
            scalingModifiers=an_object(formula=TEXT, target=TEXT, metricType={"enum": ["AverageValue", "Value"]}),
            horizontalPodAutoscalerConfig=an_object(behavior=an_object(scaleDown=SCALE_DOWN)),
        ),
        triggers=a_list(an_object(name=NAME, type={"const": "metrics-api"}, metadata=METRICS_API)),
    ),
)
# The pod template is checked as that of a Deployment: tests/deploy/kubernetes/test_several_hosts.py.
LEADER_WORKER_SET = a_resource(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    an_object(
        replicas=COUNT,
        leaderWorkerTemplate=an_object(
            size=COUNT,
            restartPolicy={"enum": ["None", "RecreateGroupOnPodRestart"]},
            workerTemplate={"type": "object"},
        ),
    ),
)
SCHEMAS = {"HTTPRoute": HTTP_ROUTE, "ScaledObject": SCALED_OBJECT, "LeaderWorkerSet": LEADER_WORKER_SET}
