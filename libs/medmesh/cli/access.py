"""`medmesh label|policy`: security labels of objects, and the site's additional access policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.asking import request_approval
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway
from medmesh.contracts.labels import OWNERS

LEVELS = click.Choice(["public", "internal", "sensitive", "core"])
KINDS = click.Choice(["dataset", "descriptor", "project", "job", "federation", "model", "release"])
assert set(KINDS.choices) <= set(OWNERS)


@click.group()
def label() -> None:
    """Security labels of data sets, projects, jobs, federations and models.  安全标记。

    A label is a level (public < internal < sensitive < core) and the organisations whose data the object is about. Who reads it must be
    cleared for the level and for each of those organisations (`medmesh user clearance`); no role helps who is not. What is made out of
    several objects has at least all of their labels. `medmesh federation show`, `model show` and the like tell an object's label.
    """


@label.command(name="set")
@click.argument("kind", type=KINDS)
@click.argument("id_", metavar="ID")
@click.argument("level", type=LEVELS)
@click.option("--of", "compartments", multiple=True, help="An organisation whose data it is about; give it once for each.")
@click.option("--reason", default="", help="Why; stands in the audit log.")
def set_label(kind: str, id_: str, level: str, compartments: tuple[str, ...], reason: str) -> int:
    """Give the object ID of a KIND a new label.  设置安全标记。

    ID is the name of a data set or project, the id of a job or federation, NAME/VERSION of a model, HOSPITAL/NAME/VERSION of a descriptor.

    To raise it works at once. To lower it (a lower level, or an organisation left out) asks for the approval of a second person, and
    happens when they have given it. Only the security administrator does either. What was made from the object before is raised with it,
    within seconds and on record; lowering it lowers nothing else.  提高标记时，此前由其派生的对象一并提高；降低时不影响其他对象。

    \b
    medmesh label set dataset chest sensitive --of renji
    medmesh label set model nodules/3 internal        # an approval is asked for
    """
    body = {"kind": kind, "id": id_, "label": {"level": level, "compartments": list(compartments)}, "reason": reason}

    async def run(gateway: Gateway) -> dict[str, Any]:
        answer: dict[str, Any] = await gateway.request("POST", "/v1/labels", body)
        if answer["state"] == "pending":
            summary = {"label": f"{level} {' '.join(compartments)}".strip(), "reason": reason}
            wanted = {"action": "label.change", "target": answer["target"], "digest": answer["digest"], "summary": summary}
            answer |= await request_approval(gateway, wanted)
        return answer

    show(with_gateway(run))
    return 0


@click.group()
def policy() -> None:
    """The site's own access policy, which only forbids.  访问控制策略。

    Who may do what is decided in this order: security label, role table, object rules. The object rules are Cedar policies
    (https://docs.cedarpolicy.com) that come with the platform; a site may add `forbid` policies of its own, each with an @id of its own.
    They reach every service within seconds, and their digest stands in the record of each decision.
    """


@policy.command(name="show")
@click.option("--schema", is_flag=True, help="What a policy may speak of: attributes and actions.")
@click.option("--built-in", is_flag=True, help="The platform's own object rules.")
def show_policy(schema: bool, built_in: bool) -> int:
    """The site's policy in force, with its number and digest.  查看策略。"""
    from medmesh.security import access

    if schema or built_in:
        click.echo(access.schema() if schema else access.built_in())
        return 0
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/policy")))
    return 0


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(file: Path) -> int:
    """Say whether FILE could be the site's policy, in the validator's words.  检查策略。

    Nothing is sent anywhere.

    \b
    @id("site.no-conversion-of-core")
    forbid (principal, action == Action::"model.convert", resource)
    when { resource.level >= 3 };
    """
    from medmesh.security.access import check_site, policies_of

    text = file.read_text(encoding="utf-8")
    check_site(text)
    names = ", ".join(one["id"] for one in policies_of(text))
    click.echo(say(f"valid: {names or 'no policy'}", f"有效：{names or '无策略'}"))
    return 0


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--reason", required=True, help="Why; the second person reads it.")
def propose(file: Path, reason: str) -> int:
    """Propose FILE as the site's whole policy; it takes the place of the one in force when a second person approves it.  提出策略。

    An empty file proposes to have none. The approver runs `medmesh approval decide`, and should compare the digest with the file
    (sha256sum FILE). Roles and clearances are no part of it: see `medmesh user roles` and `medmesh user clearance`.
    """
    body = {"text": file.read_text(encoding="utf-8"), "reason": reason}
    show(with_gateway(lambda gateway: gateway.command("POST", "/v1/policy", body)))
    return 0
