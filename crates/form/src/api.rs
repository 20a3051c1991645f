//! The cloud over REST, as any client of it would.

use std::net::SocketAddr;
use std::time::Duration;

use eventsource_stream::Eventsource as _;
use form_service::Problem;
use form_types::v1::Resource;
use form_types::{Kind, KindInfo, Object, from_json, to_json};
use futures::{Stream, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::context::Context;
use crate::error::Error;

/// A client with a token.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    context: Context,
}

/// A page, or all of them.
pub(crate) struct Listed {
    pub(crate) items: Vec<Value>,
    pub(crate) revision: u64,
}

pub(crate) enum Change {
    Put(Value),
    Deleted(Value),
}

impl Api {
    pub(crate) fn new(context: Context) -> Result<Self, Error> {
        let http = http("form-state", context.state, &context)?;
        Ok(Self { http, context })
    }

    /// The zone of the cluster's own names.
    pub(crate) fn zone(&self) -> &str {
        &self.context.zone
    }

    /// Where form-state is reached.
    pub(crate) fn state(&self) -> SocketAddr {
        self.context.state
    }

    /// The cluster's CA, PEM.
    pub(crate) fn ca(&self) -> &str {
        &self.context.ca
    }

    fn url(&self, kind: &KindInfo, project: &str, name: &str) -> String {
        let mut url = format!("https://form-state:{}/v1", self.context.state.port());
        if !kind.is_cluster_scoped() {
            url.push_str(&format!("/projects/{project}"));
        }
        url.push_str(&format!("/{}", kind.plural));
        if !name.is_empty() {
            url.push_str(&format!("/{name}"));
        }
        url
    }

    /// Another service of the cloud, at `address`, by its own name.
    pub(crate) fn service(&self, service: &str, url: &str) -> Result<Service, Error> {
        let address = form_client::address_of(url).map_err(Error::Answer)?;
        let http = http(service, address, &self.context)?;
        let base = format!("https://{service}:{}", address.port());
        Ok(Service { http, base, token: self.context.token.clone() })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        send(request.bearer_auth(&self.context.token)).await
    }

    async fn value(&self, request: RequestBuilder) -> Result<Value, Error> {
        self.send(request).await?.json().await.map_err(|error| Error::Answer(error.to_string()))
    }

    pub(crate) async fn get(&self, kind: &KindInfo, project: &str, name: &str) -> Result<Value, Error> {
        self.value(self.http.get(self.url(kind, project, name))).await
    }

    pub(crate) async fn get_object<K: Kind>(&self, project: &str, name: &str) -> Result<Object<K>, Error> {
        object(self.get(K::INFO, project, name).await?)
    }

    /// All pages. An empty project: of all projects.
    pub(crate) async fn list(&self, kind: &KindInfo, project: &str, selector: &str) -> Result<Listed, Error> {
        let mut listed = Listed { items: Vec::new(), revision: 0 };
        let mut page = String::new();
        loop {
            let request = self.http.get(self.url(kind, project, ""));
            let mut answer = self.value(request.query(&[("label_selector", selector), ("page", &page)])).await?;
            if page.is_empty() {
                listed.revision = answer.get("revision").and_then(Value::as_u64).unwrap_or(0);
            }
            if let Some(Value::Array(items)) = answer.get_mut("items").map(Value::take) {
                listed.items.extend(items);
            }
            page = answer.get("next").and_then(Value::as_str).unwrap_or_default().to_owned();
            if page.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// Changes after `revision`, until the connection ends.
    pub(crate) async fn watch(
        &self,
        kind: &KindInfo,
        project: &str,
        selector: &str,
        revision: u64,
    ) -> Result<impl Stream<Item = Result<Change, Error>> + use<>, Error> {
        let request = self.http.get(self.url(kind, project, ""));
        let after = revision.to_string();
        let query = [("watch", "true"), ("after_revision", &after), ("label_selector", selector)];
        let events = self.send(request.query(&query)).await?.bytes_stream().eventsource();
        Ok(events.filter_map(|event| async {
            let event = match event {
                Ok(event) => event,
                Err(error) => return Some(Err(Error::Answer(error.to_string()))),
            };
            let data = serde_json::from_str(&event.data).unwrap_or_default();
            match event.event.as_str() {
                "put" => Some(Ok(Change::Put(data))),
                "deleted" => Some(Ok(Change::Deleted(data))),
                "error" => Some(Err(problem(StatusCode::INTERNAL_SERVER_ERROR, &event.data))),
                _ => None,
            }
        }))
    }

    pub(crate) async fn create(&self, kind: &KindInfo, project: &str, resource: &Value) -> Result<Value, Error> {
        self.value(self.http.post(self.url(kind, project, "")).json(resource)).await
    }

    /// Creates or replaces; a revision in `resource` is a condition.
    pub(crate) async fn apply(
        &self,
        kind: &KindInfo,
        project: &str,
        name: &str,
        resource: &Value,
    ) -> Result<Value, Error> {
        self.value(self.http.request(Method::PUT, self.url(kind, project, name)).json(resource)).await
    }

    pub(crate) async fn apply_object<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, Error> {
        let (project, name) = (object.meta.project.clone(), object.meta.name.clone());
        self::object(self.apply(K::INFO, &project, &name, &to_json(&object.into())).await?)
    }

    /// Whether it is gone at once; otherwise its owner cleans up first.
    pub(crate) async fn delete(&self, kind: &KindInfo, project: &str, name: &str) -> Result<bool, Error> {
        let answer = self.send(self.http.delete(self.url(kind, project, name))).await?;
        Ok(answer.status() != StatusCode::ACCEPTED)
    }

    /// Changes an object until `done` says so, beginning with how it is now; `None` when it goes.
    pub(crate) async fn wait_for<K: Kind, T>(
        &self,
        project: &str,
        name: &str,
        mut done: impl FnMut(Option<&Object<K>>) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            // The list first: what happened before the watch is in it.
            let listed = self.list(K::INFO, project, "").await?;
            let named = |item: &Value| item.get("name").and_then(Value::as_str) == Some(name);
            let now = listed.items.into_iter().find(named).map(object::<K>).transpose()?;
            if let Some(found) = done(now.as_ref()) {
                return Ok(found);
            }
            let mut changes = std::pin::pin!(self.watch(K::INFO, project, "", listed.revision).await?);
            while let Some(change) = changes.next().await {
                let (item, gone) = match change {
                    Ok(Change::Put(item)) => (item, false),
                    Ok(Change::Deleted(item)) => (item, true),
                    // Broken or compacted: from the list again.
                    Err(_) => break,
                };
                if !named(&item) {
                    continue;
                }
                let item = object::<K>(item)?;
                if let Some(found) = done((!gone).then_some(&item)) {
                    return Ok(found);
                }
            }
        }
    }
}

/// A client of one service: by its own name, not its machine's, because no other service's certificate has that.
fn http(service: &str, address: SocketAddr, context: &Context) -> Result<reqwest::Client, Error> {
    let setup = |error: reqwest::Error| Error::Usage(format!("the context's CA cannot be used: {error}"));
    let ca = reqwest::Certificate::from_pem(context.ca.as_bytes()).map_err(setup)?;
    let client = reqwest::Client::builder().tls_certs_only([ca]).connect_timeout(Duration::from_secs(5));
    client.resolve(service, address).no_proxy().build().map_err(setup)
}

/// Another service, for moving bytes.
pub(crate) struct Service {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Service {
    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Response, Error> {
        send(self.http.get(format!("{}{path}", self.base)).query(query).bearer_auth(&self.token)).await
    }

    /// Any request, made for the whole URL of `path`.
    pub(crate) async fn send(
        &self,
        request: impl FnOnce(&reqwest::Client, String) -> RequestBuilder,
        path: &str,
    ) -> Result<Response, Error> {
        send(request(&self.http, format!("{}{path}", self.base)).bearer_auth(&self.token)).await
    }

    pub(crate) async fn post(&self, path: &str, body: reqwest::Body) -> Result<Response, Error> {
        send(self.http.post(format!("{}{path}", self.base)).body(body).bearer_auth(&self.token)).await
    }
}

pub(crate) fn object<K: Kind>(json: Value) -> Result<Object<K>, Error> {
    let resource: Resource = from_json(json).map_err(|invalid| Error::Answer(invalid.to_string()))?;
    resource.try_into().map_err(|error: form_types::ObjectError| Error::Answer(error.to_string()))
}

async fn send(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await.map_err(|source| {
        let url = source.url().map_or_else(String::new, |url| {
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(443))
        });
        Error::Unreachable { url, source: source.without_url() }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    Err(problem(status, &text))
}

fn problem(status: StatusCode, text: &str) -> Error {
    let plain = || Problem::new(status, "error", format!("{status}: {}", text.chars().take(500).collect::<String>()));
    Error::Refused(serde_json::from_str(text).unwrap_or_else(|_| plain()))
}
