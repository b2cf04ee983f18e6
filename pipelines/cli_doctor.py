"""`bloomery doctor`: what a run would miss, before it is started."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bloomery.pipelines.cli_options import EndpointOption, JsonOption, NamespaceOption, SetOption, TokenOption


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="Look at Kubeflow Pipelines and Kubernetes, too.")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose resources and webhook are meant; none: the defaults.")
    ] = None,
    set: SetOption = [],  # noqa: A002, B006
    bucket: Annotated[
        str | None,
        typer.Option(envvar="BLOOMERY_BUCKET", metavar="s3://BUCKET/PREFIX", help="Object store that is written to."),
    ] = None,
    endpoint: EndpointOption = None,
    namespace: NamespaceOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at what a run needs: versions, devices, disk, stores, credentials, services; with --cluster its rights too.

    Each check has seconds. `ok`, `fix` with what to do, `?` where it cannot be told from here. A small object is
    written to the bucket and deleted; nothing else changes, and no secret is shown. Exit codes: 0, or 2 if there is
    something to fix.

    Examples:

        bloomery doctor

        bloomery doctor --cluster --recipe my.yaml --bucket s3://mlpipeline/bloomery --namespace team-a
    """
    from bloomery.infra.resources import ResourcesConfig
    from bloomery.pipelines import doctor as checks

    resources, webhook = ResourcesConfig(), None
    if recipe:
        from bloomery.pipelines import launch

        loaded = launch.load(recipe, set, prepare=False)
        resources, webhook = loaded.resources, loaded.monitoring.alerts.webhook
    wanted = checks.of_this_machine(bucket, webhook)
    if cluster:
        from bloomery.pipelines import doctor_cluster
        from bloomery.pipelines.kubeflow import Access

        access = Access(endpoint, namespace, token)
        wanted |= doctor_cluster.of_the_cluster(access, doctor_cluster.own_namespace(access), resources)
    findings = checks.examined(wanted)
    rows = [finding._asdict() for finding in findings]
    typer.echo(json.dumps(rows, ensure_ascii=False) if as_json else "\n".join(checks.told(findings)))
    raise typer.Exit(2 if any(one.state == "fix" for one in findings) else 0)
