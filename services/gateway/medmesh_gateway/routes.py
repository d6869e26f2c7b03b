"""Every route that carries a message: method, path, message. Fields named in the path are taken from there.

A new command or query is one line here; its model validates the request and gives the OpenAPI entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from medmesh.contracts import annotation, audit, conversion, federation, governance, inference, ingestion, labels, registry, training
from medmesh.contracts.message import Message

ACTION, OPEN, OWN_SESSION = "x-medmesh-action", "open", "own session"
"""Every route says in its OpenAPI entry which action it is; the matrix of roles and routes is generated from that."""
OBJECTS = "x-medmesh-objects"
"""And which kinds of objects it is about: access to each is decided by label and object rule as well."""


def schema_of(model: type[BaseModel], shared: dict[str, Any], *, sent: bool = False) -> dict[str, Any]:
    """A reference to a model's schema, which goes to the shared ones of the OpenAPI document with all it refers to itself."""
    schema = model.model_json_schema(mode="serialization" if sent else "validation", ref_template="#/components/schemas/{model}")
    shared |= schema.pop("$defs", {})
    shared[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


@dataclass(frozen=True, slots=True)
class Route:
    """One door."""

    method: str
    path: str
    message: type[Message]
    encloses: str = ""
    """The field that names an object whose bytes may come with the message."""


ROUTES: tuple[Route, ...] = (
    # What nodes send all the time is found first.
    Route("POST", "/v1/federations/{federation}/updates", federation.SubmitUpdate, encloses="update"),
    Route("POST", "/v1/federations/{federation}/progress", federation.RoundProgressed),
    # Exchanges of credentials: the secret in the body is the key.
    Route("POST", "/v1/bootstrap", governance.Bootstrap),
    Route("POST", "/v1/sessions", governance.OpenSession),
    Route("POST", "/v1/system-sessions", governance.OpenSystemSession),
    Route("POST", "/v1/activations", governance.ActivateUser),
    # A person's own session and secrets: the session in the header is the key.
    Route("GET", "/v1/sessions", governance.ListSessions),
    Route("POST", "/v1/sessions/step-up", governance.StepUp),
    Route("DELETE", "/v1/sessions/{id}", governance.EndSession),
    Route("POST", "/v1/password", governance.ChangePassword),
    Route("POST", "/v1/second-factor", governance.EnrolSecondFactor),
    Route("POST", "/v1/second-factor/confirmation", governance.ConfirmSecondFactor),
    Route("POST", "/v1/certificates", governance.RequestCertificate),
    # A node's own enrolment.
    Route("POST", "/v1/enrolments", governance.Enrol),
    Route("POST", "/v1/enrolments/renewal", governance.RenewCertificate),
    Route("POST", "/v1/enrolments/{enrolment}/status", governance.GetEnrolment),
    # People and hospitals.
    Route("POST", "/v1/users", governance.CreateUser),
    Route("GET", "/v1/users", governance.ListUsers),
    Route("POST", "/v1/users/report", governance.ReportAccounts),
    Route("POST", "/v1/users/{name}/limit", governance.LimitUser),
    Route("POST", "/v1/users/{name}/roles", governance.ChangeRoles),
    Route("POST", "/v1/users/{name}/clearance", governance.SetClearance),
    Route("POST", "/v1/users/{name}/disabling", governance.DisableUser),
    Route("POST", "/v1/users/{name}/enabling", governance.EnableUser),
    Route("POST", "/v1/users/{name}/unlocking", governance.UnlockUser),
    Route("POST", "/v1/users/{name}/recovery", governance.RecoverUser),
    Route("POST", "/v1/hospitals", governance.RegisterHospital),
    Route("POST", "/v1/hospitals/{hospital}/systems", governance.RegisterSystem),
    Route("GET", "/v1/hospitals", governance.ListHospitals),
    Route("POST", "/v1/hospitals/{hospital}/revocation", governance.RevokeNode),
    Route("POST", "/v1/approvals", governance.RequestApproval),
    Route("GET", "/v1/approvals", governance.ListApprovals),
    Route("POST", "/v1/approvals/{approval}/decision", governance.DecideApproval),
    Route("POST", "/v1/approvals/{approval}/revocation", governance.RevokeApproval),
    Route("POST", "/v1/keys", governance.RegisterKey),
    Route("GET", "/v1/keys", governance.ListKeys),
    # Security labels and the site's policy.
    Route("POST", "/v1/labels", labels.ChangeLabel),
    Route("GET", "/v1/policy", governance.GetPolicy),
    Route("POST", "/v1/policy", governance.ProposePolicy),
    # Emergency access.
    Route("POST", "/v1/emergencies", governance.OpenEmergency),
    Route("GET", "/v1/emergencies", governance.ListEmergencies),
    Route("POST", "/v1/emergencies/{emergency}/end", governance.EndEmergency),
    Route("POST", "/v1/emergencies/{emergency}/review", governance.ReviewEmergency),
    Route("POST", "/v1/users/{name}/certificates", governance.IssueCertificate),
    Route("POST", "/v1/users/{name}/certificates/revocation", governance.RevokeCertificate),
    Route("POST", "/v1/users/{name}/emergency", governance.RestoreEmergency),
    # Audit: a hospital's own records with proofs; exports that somebody else approves.
    Route("GET", "/v1/audit/events", audit.SearchEvents),
    Route("GET", "/v1/audit/events/{event}/proof", audit.ProveEvent),
    Route("GET", "/v1/audit/bodies", audit.ListBodies),
    Route("GET", "/v1/audit/log", audit.ReadLog),
    Route("POST", "/v1/audit/exports", audit.RequestExport),
    Route("GET", "/v1/audit/exports/{export}", audit.GetExport),
    Route("POST", "/v1/audit/prunings", audit.RequestPruning),
    Route("POST", "/v1/audit/retention", audit.RequestRetention),
    Route("GET", "/v1/audit/retention", audit.GetRetention),
    Route("POST", "/v1/audit/holds", audit.PlaceHold),
    Route("POST", "/v1/audit/holds/{hold}/lift", audit.RequestLift),
    # Data.
    Route("POST", "/v1/datasets", ingestion.IngestArchive),
    Route("GET", "/v1/datasets/{dataset}", ingestion.GetDataset),
    Route("POST", "/v1/datasets/{dataset}/splits", ingestion.SplitVersion),
    Route("POST", "/v1/datasets/{dataset}/timeline", ingestion.ImportTimeline),
    Route("POST", "/v1/datasets/{dataset}/timeline/exports", ingestion.ExportTimeline),
    Route("POST", "/v1/datasets/{dataset}/cohorts", ingestion.DefineCohort),
    Route("GET", "/v1/datasets/{dataset}/cohorts/{cohort}", ingestion.AskCohort),
    Route("POST", "/v1/catalogue", ingestion.PublishDescriptor),
    Route("GET", "/v1/catalogue", ingestion.ListDescriptors),
    # Annotation.
    Route("POST", "/v1/annotation", annotation.CreateProject),
    Route("GET", "/v1/annotation/{project}", annotation.GetProject),
    Route("GET", "/v1/annotation/{project}/next", annotation.NextItem),
    Route("POST", "/v1/annotation/{project}/labels", annotation.SubmitLabel),
    Route("POST", "/v1/annotation/{project}/reviews", annotation.ReviewLabel),
    Route("POST", "/v1/annotation/{project}/exports", annotation.ExportLabels),
    Route("GET", "/v1/annotation/{project}/exports/{version}", annotation.GetLabelExport),
    # Training.
    Route("POST", "/v1/jobs", training.SubmitJob),
    Route("GET", "/v1/jobs/{job}", training.GetJob),
    Route("POST", "/v1/jobs/{job}/cancel", training.CancelJob),
    Route("POST", "/v1/rehearsals", training.RehearsePackage),
    Route("GET", "/v1/rehearsals/{package}", training.GetRehearsal),
    # Federations.
    Route("POST", "/v1/federations", federation.CreateFederation),
    Route("GET", "/v1/federations", federation.ListFederations),
    Route("GET", "/v1/federations/{federation}", federation.GetFederation),
    Route("GET", "/v1/federations/{federation}/page", federation.GetFederationPage),
    Route("GET", "/v1/federations/{federation}/chain", federation.GetRoundChain),
    Route("POST", "/v1/federations/{federation}/cancel", federation.CancelFederation),
    Route("POST", "/v1/federations/{federation}/pause", federation.PauseFederation),
    Route("POST", "/v1/federations/{federation}/resume", federation.ResumeFederation),
    Route("POST", "/v1/federations/{federation}/quarantine", federation.QuarantineHospital),
    Route("POST", "/v1/federations/{federation}/extension", federation.ExtendRound),
    Route("POST", "/v1/federations/{federation}/adjustment", federation.AdjustFederation),
    Route("POST", "/v1/federations/{federation}/links", federation.LinkInvitation),
    Route("POST", "/v1/federations/{federation}/links/{hospital}/revocation", federation.RevokeLink),
    Route("POST", "/v1/federations/{federation}/opening", federation.OpenLink),
    Route("POST", "/v1/federations/{federation}/answer", federation.RespondInvitation),
    Route("POST", "/v1/federations/{federation}/withdrawal", federation.WithdrawFromFederation),
    Route("POST", "/v1/federations/{federation}/evaluations", federation.SubmitEvaluation),
    Route("POST", "/v1/federations/{federation}/secure", federation.SubmitSecure),
    Route("POST", "/v1/federations/{federation}/failures", federation.ReportFailure),
    # Models.
    Route("POST", "/v1/models", registry.RegisterModel),
    Route("GET", "/v1/models", registry.ListModels),
    Route("GET", "/v1/models/{model}/versions/{version}", registry.GetModel),
    Route("POST", "/v1/models/{model}/versions/{version}/conversion", conversion.ConvertModel),
    Route("POST", "/v1/models/{model}/versions/{version}/release", registry.PrepareRelease),
    Route("POST", "/v1/models/{model}/versions/{version}/withdrawal", registry.WithdrawModel),
    Route("POST", "/v1/releases/{release}/installs", registry.ReportInstall),
    Route("GET", "/v1/served", inference.ListServed),
)
