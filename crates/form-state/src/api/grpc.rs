//! gRPC: `proto/formation/v1/state.proto`.

use std::pin::Pin;

use form_service::listener::Remote;
use form_service::{CancellationToken, Peer};
use form_types::v1::state_server::State;
use form_types::v1::{
    ApplyRequest, AuthenticateRequest, AuthenticateResponse, CreateRequest, DeleteRequest, FinalizeRequest,
    FinalizeResponse, GetRequest, GrantLeaseRequest, JoinRequest, JoinResponse, KeepAliveRequest, Lease, ListRequest,
    ListResponse, Resource, RevokeLeaseRequest, RevokeLeaseResponse, TransactRequest, TransactResponse,
    UpdateStatusRequest, WatchRequest, WatchResponse,
};
use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::identify;
use crate::{Error, Identity, Registry};

pub(super) struct Service {
    registry: Registry,
    shutdown: CancellationToken,
}

impl Service {
    pub(super) fn new(registry: Registry, shutdown: CancellationToken) -> Self {
        Self { registry, shutdown }
    }

    /// Who asks, and what.
    async fn open<T>(&self, request: Request<T>) -> Result<(Identity, T), Status> {
        let (metadata, extensions, body) = request.into_parts();
        let who = identify(&self.registry, extensions.get::<Peer>(), &metadata.into_headers()).await?;
        Ok((who, body))
    }
}

fn done<T>(result: Result<T, Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl State for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Resource>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.get(&who, &request.key.unwrap_or_default()).await)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.list(&who, &request).await)
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (who, request) = self.open(request).await?;
        let changes = self.registry.watch(&who, &request).await?;
        let changes = changes.map(|change| change.map_err(Status::from));
        Ok(Response::new(Box::pin(changes.take_until(self.shutdown.clone().cancelled_owned()))))
    }

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<Resource>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.create(&who, request).await)
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Resource>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.apply(&who, request.resource.unwrap_or_default()).await.map(|(resource, _)| resource))
    }

    async fn update_status(&self, request: Request<UpdateStatusRequest>) -> Result<Response<Resource>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.update_status(&who, request).await)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<Resource>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.delete(&who, request).await)
    }

    async fn finalize(&self, request: Request<FinalizeRequest>) -> Result<Response<FinalizeResponse>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.finalize(&who, &request).await.map(|()| FinalizeResponse {}))
    }

    async fn transact(&self, request: Request<TransactRequest>) -> Result<Response<TransactResponse>, Status> {
        let (who, request) = self.open(request).await?;
        let resources = self.registry.transact(&who, &request.operations).await;
        done(resources.map(|resources| TransactResponse { resources }))
    }

    async fn grant_lease(&self, request: Request<GrantLeaseRequest>) -> Result<Response<Lease>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.grant_lease(&who, request.ttl_ms).await)
    }

    async fn keep_alive(&self, request: Request<KeepAliveRequest>) -> Result<Response<Lease>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.keep_alive(&who, request.id).await)
    }

    async fn revoke_lease(
        &self,
        request: Request<RevokeLeaseRequest>,
    ) -> Result<Response<RevokeLeaseResponse>, Status> {
        let (who, request) = self.open(request).await?;
        done(self.registry.revoke_lease(&who, request.id).await.map(|()| RevokeLeaseResponse {}))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let (who, request) = self.open(request).await?;
        if !matches!(who, Identity::Service { .. }) {
            return Err(Status::permission_denied("asking who shows a token is for services"));
        }
        match self.registry.authenticate(&request.token).await? {
            Identity::Person { token, project, role } => Ok(Response::new(AuthenticateResponse {
                subject: token,
                project: project.unwrap_or_default(),
                role: role.name().to_owned(),
            })),
            Identity::Service { .. } => Err(Status::internal("a token is never a service's")),
        }
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let from = request.extensions().get::<Remote>().map(|remote| remote.0.ip());
        done(self.registry.join(request.get_ref(), from).await)
    }
}
