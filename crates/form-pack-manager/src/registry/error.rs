//! What goes wrong, as the distribution-spec's clients read it (spec.md, "Error Codes").

use std::io;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::store::StoreError;

/// An answer that is an error: its status, one of the specification's codes, and a sentence for people.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Error {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unknown(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn too_large(what: &str, most: u64) -> Self {
        let text = format!("{what} has more than {most} bytes, which is the most that this registry takes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", text)
    }

    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// Of ours; the log says more.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = form_service::run::chain(error), "the registry failed");
        let text = "something went wrong on our side; the log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", text)
    }

    pub(super) fn unavailable() -> Self {
        let text = "form-state cannot be asked now; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", text).with(header::RETRY_AFTER, "1")
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if let StoreError::Mismatch { .. } = error {
            return Self::bad("DIGEST_INVALID", error.to_string());
        }
        if is_full(&error) {
            tracing::error!(error = form_service::run::chain(&error), "the disk is full");
            let text = "the disk of the package store is full; nothing was taken";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", text);
        }
        Self::internal(&error)
    }
}

/// Whether `error` is, or comes of, a disk or a quota that has no room.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |cause| cause.source()).any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}
