"""Python SDK for the gateway: used by the command line, the hospital's edge node and researchers.

async with Gateway(url, ca=Path("ca.pem")) as gateway:
    person = await sign_in(gateway, "li", password)
    result = await person.command("POST", "/v1/federations", document)
"""

from medmesh.client.gateway import Gateway
from medmesh.client.people import Authenticator, sign_in
from medmesh.client.transfer import download, upload

__all__ = ["Authenticator", "Gateway", "download", "sign_in", "upload"]
