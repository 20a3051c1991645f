//! The OpenAPI 3.1 document of the REST API, made out of the kinds. `docs/openapi.yaml` is its copy for people; a test
//! holds the two equal.

use std::sync::LazyLock;

use form_types::{KINDS, KindInfo};
use serde_json::{Map, Value, json};

/// [`document`] as text.
pub fn yaml() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| serde_yaml_ng::to_string(&document()).unwrap_or_default());
    &TEXT
}

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let place = if kind.is_cluster_scoped() { "" } else { "/projects/{project}" };
        paths.insert(format!("/v1{place}/{}", kind.plural), many(kind));
        paths.insert(format!("/v1{place}/{}/{{name}}", kind.plural), one(kind));
        // form-state writes its own kinds' statuses itself.
        if kind.owners.iter().any(|owner| *owner != "form-state") {
            paths.insert(format!("/v1{place}/{}/{{name}}/status", kind.plural), status(kind));
        }
    }
    paths.insert("/v1/join".to_owned(), join());
    let mut schemas = Map::from_iter(form_types::schemas());
    for kind in KINDS {
        schemas.insert(format!("{}List", kind.name), list_schema(kind));
    }
    schemas.insert("Problem".to_owned(), problem_schema());
    schemas.extend(join_schemas());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Formation",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "One private cloud out of a few Linux machines.",
            "description": "Everything is a resource: its spec is what is wanted, its status what is. Errors are problem \
                documents (RFC 9457). An ETag carries the revision; give it back as If-Match to change only what you \
                have seen. The same API is there as gRPC, with server reflection.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "https://localhost:3004"}],
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
            "parameters": parameters(),
            "responses": {"Problem": {
                "description": "Refused; the document says why, and what to do.",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }},
        },
    })
}

fn many(kind: &KindInfo) -> Value {
    let name = kind.name;
    let mut parameters = place(kind);
    parameters.extend(["label_selector", "limit", "page", "watch", "after_revision", "Last-Event-ID"].map(parameter));
    let mut create = place(kind);
    create.push(parameter("Idempotency-Key"));
    let created = json!({
        "description": "Created.",
        "headers": {
            "ETag": {"schema": {"type": "string"}, "description": "The revision, in quotes."},
            "Location": {"schema": {"type": "string"}, "description": "Where it is."},
        },
        "content": content(name),
    });
    json!({
        "get": {
            "operationId": format!("list{name}s"),
            "tags": [name],
            "summary": format!("Lists {}; with `watch`, tells every change as a server-sent event", kind.plural),
            "parameters": parameters,
            "responses": {
                "200": {
                    "description": "A page of them; or, with `watch`, the events put, deleted, progress and error.",
                    "content": {
                        "application/json": {"schema": reference(&format!("{name}List"))},
                        "text/event-stream": {"schema": {"type": "string"}},
                    },
                },
                "default": problem(),
            },
        },
        "post": {
            "operationId": format!("create{name}"),
            "tags": [name],
            "summary": format!("Creates a {name}"),
            "parameters": create,
            "requestBody": {"required": true, "content": content(name)},
            "responses": {"201": created, "default": problem()},
        },
    })
}

fn one(kind: &KindInfo) -> Value {
    let name = kind.name;
    let with = |names: &[&str]| {
        let mut parameters = place(kind);
        parameters.push(parameter("name"));
        parameters.extend(names.iter().copied().map(parameter));
        parameters
    };
    json!({
        "get": {
            "operationId": format!("get{name}"),
            "tags": [name],
            "summary": format!("Gets a {name}"),
            "parameters": with(&[]),
            "responses": {"200": found(name), "default": problem()},
        },
        "put": {
            "operationId": format!("apply{name}"),
            "tags": [name],
            "summary": format!("Creates a {name}, or replaces its labels and spec"),
            "parameters": with(&["If-Match", "If-None-Match"]),
            "requestBody": {"required": true, "content": content(name)},
            "responses": {"200": found(name), "201": found(name), "default": problem()},
        },
        "delete": {
            "operationId": format!("delete{name}"),
            "tags": [name],
            "summary": format!("Deletes a {name}"),
            "parameters": with(&["If-Match"]),
            "responses": {
                "200": found(name),
                "202": {"description": "Its owner cleans up first; then it goes.", "content": content(name)},
                "default": problem(),
            },
        },
    })
}

fn join() -> Value {
    json!({"post": {
        "operationId": "join",
        "tags": ["JoinToken"],
        "summary": "Makes a machine a node: takes a JoinToken, and signs the certificates of the node's services",
        "description": "Needs no other proof of who asks. The same machine may repeat it with the same keys.",
        "security": [],
        "requestBody": {"required": true, "content": content("JoinRequest")},
        "responses": {
            "200": {"description": "It is a node.", "content": content("JoinResponse")},
            "default": problem(),
        },
    }})
}

fn join_schemas() -> [(String, Value); 2] {
    let text = |text: &str| json!({"type": "string", "description": text});
    let request = json!({
        "type": "object",
        "required": ["token", "requests"],
        "properties": {
            "token": text("The JoinToken's secret."),
            "node": text("The node's name; empty: the one in the JoinToken."),
            "requests": {"type": "array", "minItems": 1, "maxItems": 4, "items": {
                "type": "object",
                "required": ["service", "csr"],
                "properties": {
                    "service": text("The service that the certificate is for."),
                    "csr": text("A PKCS #10 request (RFC 2986), DER in base64. Of it only the key counts."),
                },
            }},
        },
    });
    let response = json!({
        "type": "object",
        "required": ["node", "certificates"],
        "properties": {
            "node": text("The node's name."),
            "certificates": {
                "type": "array",
                "items": text("PEM."),
                "description": "One for each request, in their order.",
            },
        },
    });
    [("JoinRequest".to_owned(), request), ("JoinResponse".to_owned(), response)]
}

fn status(kind: &KindInfo) -> Value {
    let mut parameters = place(kind);
    parameters.extend(["name", "If-Match"].map(parameter));
    json!({"put": {
        "operationId": format!("update{}Status", kind.name),
        "tags": [kind.name],
        "summary": format!("Replaces the status; for {}", kind.owners.join(" and ")),
        "parameters": parameters,
        "requestBody": {"required": true, "content": content(kind.name)},
        "responses": {"200": found(kind.name), "default": problem()},
    }})
}

fn place(kind: &KindInfo) -> Vec<Value> {
    if kind.is_cluster_scoped() { Vec::new() } else { vec![parameter("project")] }
}

fn parameters() -> Value {
    let label = json!({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"});
    let query = |name: &str, text: &str, schema: Value| json!({"name": name, "in": "query", "description": text, "schema": schema});
    let head = |name: &str, text: &str| json!({"name": name, "in": "header", "description": text, "schema": {"type": "string"}});
    let path = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": label});
    json!({
        "project": path("project"),
        "name": path("name"),
        "label_selector": query("label_selector", "`app=web,tier!=db,debug,!old`", json!({"type": "string"})),
        "limit": query("limit", "At most this many; 500 is the most.", json!({"type": "integer", "minimum": 0, "maximum": 4294967295_u32})),
        "page": query("page", "What the page before gave as `next`.", json!({"type": "string"})),
        "watch": query("watch", "Any value but `false`: a stream of changes.", json!({"type": "string"})),
        "after_revision": query("after_revision", "With `watch`: changes after this revision; absent: from now on.", json!({"type": "integer", "minimum": 0})),
        "Last-Event-ID": head("Last-Event-ID", "With `watch`: as after_revision; browsers send it by themselves."),
        "Idempotency-Key": head("Idempotency-Key", "A second creation with the same key within a day gets the first one's answer."),
        "If-Match": head("If-Match", "An ETag: only if that is still the last revision."),
        "If-None-Match": head("If-None-Match", "`*`: only if there is none yet."),
    })
}

fn parameter(name: &str) -> Value {
    json!({"$ref": format!("#/components/parameters/{name}")})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn content(schema: &str) -> Value {
    json!({"application/json": {"schema": reference(schema)}})
}

fn found(schema: &str) -> Value {
    json!({
        "description": "As it is.",
        "headers": {"ETag": {"schema": {"type": "string"}, "description": "The revision, in quotes."}},
        "content": content(schema),
    })
}

fn problem() -> Value {
    json!({"$ref": "#/components/responses/Problem"})
}

fn list_schema(kind: &KindInfo) -> Value {
    json!({
        "type": "object",
        "required": ["items", "revision", "next"],
        "properties": {
            "items": {"type": "array", "items": reference(kind.name)},
            "revision": {"type": "integer", "description": "What a watch goes on from; with pages, the first page's."},
            "next": {"type": "string", "description": "Where the next page starts; empty: this was the last."},
        },
    })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status"],
        "properties": {
            "type": {"type": "string", "description": "/problems/<name>; stable, programs go by it."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What was wrong this time, and what to do."},
            "errors": {"type": "array", "items": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "detail": {"type": "string"}},
            }},
        },
    })
}
