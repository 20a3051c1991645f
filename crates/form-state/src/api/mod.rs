//! The API, as REST and as gRPC, on one port: both are thin coats over the registry.

mod grpc;
pub(crate) mod openapi;
mod rest;

use axum::Router;
use form_service::{CancellationToken, Peer};
use form_types::v1::state_server::StateServer;
use http::HeaderMap;

use crate::{Error, Identity, Registry};

/// A watch ends with `shutdown`, so that it does not hold up the stop.
pub(crate) fn routes(registry: Registry, shutdown: CancellationToken) -> Router {
    let grpc = grpc::Service::new(registry.clone(), shutdown.clone());
    let router = rest::routes(registry, shutdown).route_service("/formation.v1.State/{method}", StateServer::new(grpc));
    match tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(form_types::encoded_descriptors())
        .build_v1()
    {
        Ok(reflection) => router.route_service("/grpc.reflection.v1.ServerReflection/{method}", reflection),
        Err(error) => {
            tracing::warn!(%error, "gRPC reflection is off");
            router
        }
    }
}

/// Who asks: a service by its certificate, or else whoever's token this is.
async fn identify(registry: &Registry, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Identity, Error> {
    let authorization = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match (peer, authorization) {
        (_, Some(value)) => {
            let (scheme, token) = value.split_once(' ').unwrap_or_default();
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(Error::Unauthenticated("the Authorization header is not of the form: Bearer TOKEN"));
            }
            registry.authenticate(token.trim()).await
        }
        (Some(peer), None) => registry.let_in(peer.clone().into()),
        (None, None) => Err(Error::Unauthenticated("show a token: Authorization: Bearer TOKEN")),
    }
}
