"""What must hold of a rendered overlay beside the schemas.

Each check takes the objects and returns its faults as text.
"""

import manifests
from manifests import container, flags, named, pod_spec, seconds

MARGIN_SECONDS = 10
RESOLVE_SECONDS = 30  # gRPC asks DNS no more often
CLIENT_LABEL = "overfill-client"
# Sources of volumes that Kubernetes' "restricted" profile allows, and image.
VOLUME_SOURCES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral",
                  "image", "persistentVolumeClaim", "projected", "secret"}


def check_references(objects):
    """Names of ConfigMaps, volumes, ports, the ServiceAccount, the target."""
    spec, server = pod_spec(objects), container(objects)
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    if volumes != mounts:
        yield f"volumes {volumes ^ mounts} are mounted or defined alone"
    maps = {item["metadata"]["name"] for item in objects
            if item["kind"] == "ConfigMap"}
    used = {volume["configMap"]["name"] for volume in spec["volumes"]
            if "configMap" in volume}
    if maps != used:
        yield f"ConfigMaps {maps} are there, {used} are used"
    account = named(objects, "ServiceAccount")["metadata"]["name"]
    if spec["serviceAccountName"] != account:
        yield f"ServiceAccount {spec['serviceAccountName']} is not there"
    target = named(objects, "HorizontalPodAutoscaler")["spec"][
        "scaleTargetRef"]
    deployment = named(objects, "Deployment")
    if target != {"apiVersion": deployment["apiVersion"],
                  "kind": deployment["kind"],
                  "name": deployment["metadata"]["name"]}:
        yield f"what scales is {target}"
    if "replicas" in deployment["spec"]:
        yield "the Deployment and the HorizontalPodAutoscaler set replicas"


def check_selectors(objects):
    """All that selects pods selects those of the Deployment."""
    deployment = named(objects, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    spread = pod_spec(objects)["topologySpreadConstraints"]
    selectors = [
        ("Deployment", deployment["selector"]["matchLabels"]),
        ("Service", named(objects, "Service")["spec"]["selector"]),
        ("PodDisruptionBudget", named(objects, "PodDisruptionBudget")["spec"][
            "selector"]["matchLabels"]),
        ("NetworkPolicy", named(objects, "NetworkPolicy")["spec"][
            "podSelector"]["matchLabels"]),
        *[("topologySpreadConstraints", item["labelSelector"]["matchLabels"])
          for item in spread]]
    for owner, selector in selectors:
        if not selector or not manifests.matches(selector, labels):
            yield f"{owner} does not select the pods: {selector}"
    keys = [item["topologyKey"] for item in spread]
    if "kubernetes.io/hostname" not in keys:
        yield "replicas are not spread over nodes"


def check_ports(objects):
    """Flags, container, Service and NetworkPolicy agree on the ports."""
    server, given = container(objects), flags(objects)
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    for name, flag in [("grpc", "listen"), ("health", "health_listen"),
                       ("metrics", "metrics_listen")]:
        if given.get(flag) != f"$(POD_IP):{ports[name]}":
            yield f"--{flag}={given.get(flag)}, but port {name} {ports[name]}"
    service = named(objects, "Service")["spec"]
    if service.get("clusterIP") != "None":
        yield "the Service is not headless"
    served = {port["name"]: (port["port"], port["targetPort"])
              for port in service["ports"]}
    # Clients of a headless Service dial the container's port as it is.
    if served != {name: (ports[name], name) for name in ("grpc", "metrics")}:
        yield f"the Service has the ports {served}"


def check_probes(objects):
    """All three ask gRPC health where there is no TLS."""
    given = flags(objects)
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(objects).get(kind, {})
        if probe.get("grpc") != {
                "port": manifests.port_of(given["health_listen"]),
                "service": "overfill.v1.Inference"}:
            yield f"{kind} asks {probe.get('grpc')}"
        elif probe["timeoutSeconds"] < 2:
            yield f"{kind} has no patience with a busy node"
    readiness, liveness = (
        probe["periodSeconds"] * probe["failureThreshold"] for probe in
        (container(objects)[kind] for kind in
         ("readinessProbe", "livenessProbe")))
    if readiness >= liveness:
        yield "a replica is restarted before its clients are told"


def check_times(objects):
    """Whether a replica's end fits into its grace and cuts no request."""
    given, spec = flags(objects), pod_spec(objects)
    pre_stop = container(objects)["lifecycle"]["preStop"]
    if set(pre_stop) != {"sleep"}:
        yield f"preStop needs a program in the image: {pre_stop}"
        return
    delay, drain, longest, age_grace, age = (
        seconds(given[name]) for name in
        ("drain_delay", "drain_timeout", "max_request_duration",
         "max_connection_age_grace", "max_connection_age"))
    needed = pre_stop["sleep"]["seconds"] + delay + drain + MARGIN_SECONDS
    if spec["terminationGracePeriodSeconds"] < needed:
        yield (f"a grace of {spec['terminationGracePeriodSeconds']} s; "
               f"{needed} s are needed")
    if delay <= 0:
        yield "no time between NOT_SERVING and refusals"
    # The drain counts from SIGTERM, and a request may begin until the delay is
    # over.
    if drain < delay + longest:
        yield f"a drain of {drain} s cuts requests of {longest} s"
    if age <= 0:
        yield "connections live for ever"
    if age_grace <= longest:
        yield f"connections end in {age_grace} s, requests in {longest} s"
    rollout = named(objects, "Deployment")["spec"]
    startup = container(objects)["startupProbe"]
    replicas = named(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
    if rollout.get("minReadySeconds", 0) * replicas < RESOLVE_SECONDS:
        yield "all replicas may go before a client asks DNS again"
    if rollout["progressDeadlineSeconds"] <= (
            startup["periodSeconds"] * startup["failureThreshold"]):
        yield "a slow start is taken for a failed update"
    if rollout["strategy"] != {"type": "RollingUpdate", "rollingUpdate": {
            "maxUnavailable": 0, "maxSurge": 1}}:
        yield f"an update may take replicas away: {rollout['strategy']}"


def check_pod_security(objects):
    """Kubernetes' "restricted" profile, and more of the same kind."""
    spec, server = pod_spec(objects), container(objects)
    pod = spec["securityContext"]
    if pod.get("runAsNonRoot") is not True or pod.get("runAsUser", 0) == 0:
        yield "may run as root"
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the API"
    if named(objects, "ServiceAccount").get(
            "automountServiceAccountToken") is not False:
        yield "the ServiceAccount gives tokens of the API"
    if spec.get("enableServiceLinks") is not False:
        yield "Services become variables that look like flags"
    for name in ("hostNetwork", "hostPID", "hostIPC", "initContainers",
                 "shareProcessNamespace"):
        if name in spec:
            yield f"has {name}"
    if server["securityContext"] != {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}}:
        yield f"securityContext is {server['securityContext']}"
    for volume in spec["volumes"]:
        if len(set(volume) & VOLUME_SOURCES) != 1 or len(volume) != 2:
            yield f"volume {volume}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"{volume['name']} may fill the node"
        # Readable by the group, which is fsGroup, and by nobody else.
        if "secret" in volume and volume["secret"].get("defaultMode") != 0o440:
            yield f"the files of {volume['name']} are readable by all"
    for mount in server["volumeMounts"]:
        if "subPath" in mount:
            yield f"{mount['mountPath']} is never renewed"
        source = {volume["name"]: volume for volume in spec["volumes"]}
        if ("emptyDir" not in source.get(mount["name"], {}) and
                mount.get("readOnly") is not True):
            yield f"{mount['mountPath']} can be written"


def check_resources(objects):
    """Requests and limits are there, and equal."""
    resources = container(objects)["resources"]
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
        yield "no requests of CPU and memory"
    if resources.get("requests") != resources.get("limits"):
        yield "limits differ from requests"


def check_secrets(objects):
    """TLS and tokens are on, from Secrets that are not in the manifests."""
    given = flags(objects)
    if any(item["kind"] == "Secret" for item in objects):
        yield "a Secret is part of the manifests"
    if "allow_plaintext" in given:
        yield "plaintext is allowed"
    volumes = {volume["name"]: volume for volume in pod_spec(objects)[
        "volumes"]}
    folders = {mount["mountPath"]: volumes.get(mount["name"], {})
               for mount in container(objects)["volumeMounts"]}
    for flag, name in [("tls_cert", "tls.crt"), ("tls_key", "tls.key"),
                       ("auth_tokens", "tokens.json")]:
        folder, _, file = given.get(flag, "").rpartition("/")
        if file != name or "secret" not in folders.get(folder, {}):
            yield f"--{flag} is no file of a Secret: {given.get(flag)}"


def check_network(objects):
    """The API for labelled clients, metrics for monitoring, no more."""
    policy = named(objects, "NetworkPolicy")["spec"]
    if sorted(policy["policyTypes"]) != ["Egress", "Ingress"]:
        yield f"the policy is about {policy['policyTypes']}"
    if policy.get("egress"):
        yield "something may go out"
    for rule in policy["ingress"]:
        ports = [port["port"] for port in rule.get("ports", [])]
        sources = rule.get("from") or [{}]
        if ports == ["grpc"]:
            narrow = all(
                source.get("podSelector", {}).get("matchLabels", {}).get(
                    CLIENT_LABEL) == "true" for source in sources)
        elif ports == ["metrics"]:
            narrow = all(
                source.get("namespaceSelector", {}).get("matchLabels")
                for source in sources)
        else:
            narrow = False
        if not narrow:
            yield f"ports {ports} are open to {sources}"


ALL = [check_references, check_selectors, check_ports, check_probes,
       check_times, check_pod_security, check_resources, check_secrets,
       check_network]


def faults(objects):
    """Of all checks. An object that is not there is a fault too."""
    found = []
    for check in ALL:
        try:
            found += check(objects)
        except (KeyError, LookupError, ValueError, TypeError) as error:
            found.append(f"{check.__name__}: {error!r}")
    return found
