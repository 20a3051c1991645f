//! Packages and images: what was built as the Package NAME is the image `latest` of PROJECT/NAME.

use form_client::Client;
use form_types::kinds;

use super::Error;
use super::name::Repository;

pub(crate) struct Packages {
    client: Client,
}

impl Packages {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The image `latest` is no more, so neither is the Package.
    pub(super) async fn untagged(&self, repository: &Repository) -> Result<(), Error> {
        let Some(name) = repository.package() else { return Ok(()) };
        let package = match self.client.get::<kinds::Package>(repository.project(), name).await {
            Ok(package) => package,
            Err(form_client::Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(Error::internal(&error)),
        };
        match self.client.delete::<kinds::Package>(&package.meta).await {
            Ok(()) | Err(form_client::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(Error::internal(&error)),
        }
    }
}
