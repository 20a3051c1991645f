//! How a machine that has no identity yet gets into a cluster.

use std::time::Duration;

use form_types::v1::state_client::StateClient;
use form_types::v1::{JoinRequest, JoinResponse};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::{Endpoint, Error};

const PATIENCE: Duration = Duration::from_secs(15);

/// Shows a JoinToken to the form-state at `endpoint`, which has to have a certificate of the CA in `ca_pem`. It may be
/// repeated with the same keys; then it gets certificates again.
pub async fn join(endpoint: Endpoint, ca_pem: &str, request: JoinRequest) -> Result<JoinResponse, Error> {
    let tls = ClientTlsConfig::new().domain_name("form-state").ca_certificate(Certificate::from_pem(ca_pem));
    let channel = Channel::from_shared(format!("https://{}", String::from(endpoint)))
        .map_err(|error| Error::Other(error.to_string()))?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(5))
        .connect_lazy();
    let mut request = tonic::Request::new(request);
    request.set_timeout(PATIENCE);
    Ok(StateClient::new(channel).join(request).await?.into_inner())
}
