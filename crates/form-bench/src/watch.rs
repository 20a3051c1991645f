//! How soon a watch tells what was committed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use form_types::v1::{CreateRequest, WatchRequest};

use crate::Row;
use crate::cloud::Cloud;
use crate::writes::example;

const WRITES: usize = 2000;
const PAUSE: Duration = Duration::from_millis(3);

/// From the acknowledgement of a write to its arrival at a watch on another connection; one that arrives before the
/// acknowledgement counts as zero.
pub(crate) async fn delivery(cloud: &Cloud) -> Result<Row> {
    let mut watcher = cloud.client().await?;
    let request = WatchRequest { kind: "Event".to_owned(), project: "default".to_owned(), ..Default::default() };
    let mut changes = watcher.watch(request).await?.into_inner();
    let arrived: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let book = Arc::clone(&arrived);
    let reader = tokio::spawn(async move {
        let mut count = 0;
        while count < WRITES {
            let response = changes.message().await?.context("the watch ended")?;
            let now = Instant::now();
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            for change in response.changes {
                count += 1;
                book.insert(change.resource.unwrap_or_default().name, now);
            }
        }
        Ok::<_, anyhow::Error>(())
    });

    let mut writer = cloud.client().await?;
    let mut acknowledged = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let resource = example();
        let name = resource.name.clone();
        writer.create(CreateRequest { resource: Some(resource), idempotency_key: String::new() }).await?;
        acknowledged.push((name, Instant::now()));
        tokio::time::sleep(PAUSE).await;
    }
    reader.await??;
    let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let delays: Vec<f64> = acknowledged
        .iter()
        .filter_map(|(name, at)| Some(arrived.get(name)?.saturating_duration_since(*at).as_secs_f64() * 1e3))
        .collect();
    let (half, most) = (crate::quantile(delays.clone(), 0.5), crate::quantile(delays, 0.99));
    Ok(Row::alone("watch delivery after the acknowledgement, p50 / p99", format!("{half:.2} ms / {most:.2} ms")))
}
