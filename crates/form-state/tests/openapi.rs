//! The description of the API is the API's.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::process::Command;

use common::Process;
use serde_json::Value;

const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.yaml");

#[test]
fn the_copy_in_docs_is_up_to_date() {
    let copy = std::fs::read_to_string(COPY).unwrap_or_default();
    assert!(copy == form_state::openapi_yaml(), "docs/openapi.yaml is old; run: cargo xtask openapi");
}

/// An outside judge: it makes requests up out of the document, and holds the answers against it.
#[tokio::test]
async fn schemathesis_finds_no_answer_that_the_document_does_not_tell_of() {
    if Command::new("schemathesis").arg("--version").output().is_err() {
        return println!("skipped: schemathesis is not installed; run: pip install schemathesis");
    }
    let state = Process::start("").await;
    let token = std::fs::read_to_string(state.data_dir().join("admin.token")).unwrap();
    // Without watches, whose answers have no end.
    let mut document = form_state::openapi();
    for path in document["paths"].as_object_mut().unwrap().values_mut() {
        if let Some(parameters) = path.pointer_mut("/get/parameters").and_then(Value::as_array_mut) {
            parameters.retain(|parameter| parameter["$ref"] != "#/components/parameters/watch");
        }
    }
    let schema = state.place.dir.path().join("openapi.json");
    std::fs::write(&schema, document.to_string()).unwrap();
    let mut run = tokio::process::Command::new("schemathesis");
    run.arg("run")
        .arg(&schema)
        .args(["--url", &format!("https://localhost:{}", state.address.port())])
        .args(["--tls-verify", "false", "--seed", "1", "--max-examples", "5", "--phases", "coverage,fuzzing"])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"])
        .args(["--checks", "response_schema_conformance,response_headers_conformance"])
        .args(["--request-timeout", "10"])
        // The one token that lets it in must stay.
        .args(["--exclude-operation-id", "deleteToken", "--exclude-operation-id", "applyToken"])
        .arg(format!("--header=Authorization: Bearer {}", token.trim()))
        .current_dir(state.place.dir.path());
    let output = run.output().await.unwrap();
    // Its exit code also tells of connections that idled too long between two requests.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Test cases:") && !said.contains(" FAILURES "), "{said}");
}
