"""Hospital systems over real HTTPS: a signed assertion opens a session with one role, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.world import World

from medmesh.client import Gateway
from medmesh.client.people import sign_in_system
from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.security import roles
from medmesh.security.assertions import AUDIENCE, sign
from medmesh.security.authority import new_key
from medmesh.security.tokens import verify_actor


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


async def registered(world: World, name: str, key: Any) -> Gateway:
    admin = await world.admin()
    await admin.request("POST", "/v1/hospitals", {"hospital": "renji", "display_name": "仁济医院"})
    await admin.command("POST", "/v1/hospitals/renji/systems", {"name": name, "public_key_pem": pem(key)})
    return admin


def claims(**changed: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    made = {"iss": "his", "sub": "his", "aud": AUDIENCE, "jti": new_id(), "exp": int((now + timedelta(minutes=2)).timestamp()), **changed}
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize("key", [Ed25519PrivateKey.generate(), new_key()], ids=["EdDSA", "ES256"])
async def test_a_system_signs_in_with_its_key_and_may_only_what_the_table_says(world: World, key: Any) -> None:
    await registered(world, "his", key)
    system = await sign_in_system(world.anybody, "his", key)
    token = (await system.request("POST", "/v1/tokens/inference"))["token"]
    actor = verify_actor(token, world.p.trust, datetime.now(UTC), audience="inference")
    assert (actor.text, actor.roles, actor.method) == ("system:his@renji", {"system", "system:renji"}, "pkjwt")
    assert {action for action in roles.TABLE if roles.allow(actor, action, datetime.now(UTC)).allowed} == {"inference.infer", "model.read"}
    for path in ("/v1/users", "/v1/approvals", "/v1/catalogue"):
        with pytest.raises(Problem) as caught:
            await system.request("GET", path)
        assert caught.value.code == "access.denied"
    with pytest.raises(Problem) as caught:
        await system.request("POST", "/v1/second-factor", {})
    assert caught.value.code == "governance.no_person"


async def test_an_assertion_is_for_us_for_now_by_the_registered_key_and_counts_once(world: World) -> None:
    key, thief = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    admin = await registered(world, "his", key)

    async def refused(assertion: str) -> str:
        try:
            await world.anybody.request("POST", "/v1/system-sessions", {"assertion": assertion})
        except Problem as problem:
            return str(problem.params["reason"]) if problem.code == "security.assertion_refused" else problem.code
        return ""

    def made(by: Any = key, algorithm: str = "EdDSA", **changed: Any) -> str:
        return jwt.encode(claims(**changed), by, algorithm=algorithm)

    now = datetime.now(UTC)
    good = made()
    assert await refused(good) == ""
    assert await refused(good) == "used before"
    assert await refused(made(thief)) == "signature"
    assert await refused(made(new_key(), "ES256")) == "signature", "the header does not choose the algorithm"
    assert await refused(jwt.encode(claims(), "x" * 32, algorithm="HS256")) == "signature"
    assert await refused(jwt.encode(claims(), None, algorithm="none")) == "signature"
    assert await refused(made(aud="medmesh")) == "audience"
    assert await refused(made(iss="lis")) == "claims"
    assert await refused(made(sub="lis")) == "signature", "and nothing tells which systems there are"
    assert await refused(made(jti=None)) == "signature"
    assert await refused(made(exp=int((now + timedelta(minutes=7)).timestamp()))) == "longer than five minutes"
    assert await refused(made(exp=int((now - timedelta(minutes=2)).timestamp()))) == "expired"
    assert await refused("nonsense") == "malformed"
    system = await sign_in_system(world.anybody, "his", key)
    await admin.command("POST", "/v1/users/his/disabling", {"reason": "replaced"})
    assert await refused(sign(key, "his")) == "signature"
    with pytest.raises(Problem) as caught:
        await system.request("POST", "/v1/tokens/inference")
    assert caught.value.code == "governance.session_over"


async def test_a_system_has_no_password_no_other_role_and_a_good_key(world: World) -> None:
    admin = await registered(world, "his", new_key())
    weak = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for body, code in (
        ({"name": "his", "public_key_pem": pem(new_key())}, "governance.taken"),
        ({"name": "lis", "public_key_pem": pem(weak)}, "security.system_key"),
        ({"name": "lis", "public_key_pem": "nonsense"}, "security.system_key"),
    ):
        with pytest.raises(Problem) as caught:
            await admin.command("POST", "/v1/hospitals/renji/systems", body)
        assert caught.value.code == code
    with pytest.raises(Problem) as caught:
        await admin.command("POST", "/v1/hospitals/nowhere/systems", {"name": "lis", "public_key_pem": pem(new_key())})
    assert caught.value.code == "request.not_found"
    with pytest.raises(Problem) as caught:
        await admin.command("POST", "/v1/users/his/roles", {"roles": ["researcher"]})
    assert caught.value.code == "governance.no_person"
    with pytest.raises(Problem) as caught:
        await admin.request("POST", "/v1/users/his/recovery", {})
    assert caught.value.code == "governance.no_person"
    with pytest.raises(Problem) as caught:
        await world.anybody.request("POST", "/v1/sessions", {"name": "his", "password": ""})
    assert caught.value.code == "governance.sign_in_refused"
