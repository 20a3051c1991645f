//! How soon a change is served as a name.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use form_types::v1::record_spec::Type;
use form_types::v1::{ApplyRequest, RecordSpec};
use form_types::{Object, kinds};

use crate::Row;
use crate::cloud::Cloud;

const CHANGES: u8 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// From the acknowledgement of a Record's change to the first answer that has it; one that is served before counts as
/// zero.
pub(crate) async fn change(cloud: &Cloud) -> Result<Row> {
    let mut client = cloud.client().await?;
    let token = std::fs::read_to_string(cloud.data.join("state/admin.token"))?;
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {}", token.trim()).parse()?;
    let mut delays = Vec::new();
    for number in 1..=CHANGES {
        let wanted = Ipv4Addr::new(192, 0, 2, number);
        let seen = std::thread::spawn(move || poll(wanted));
        let mut spec = RecordSpec { name: "bench".to_owned(), data: vec![wanted.to_string()], ..Default::default() };
        spec.set_type(Type::A);
        let record = Object::<kinds::Record>::new("default", "bench", spec);
        let mut request = tonic::Request::new(ApplyRequest { resource: Some(record.into()) });
        request.metadata_mut().insert("authorization", bearer.clone());
        client.apply(request).await?;
        let acknowledged = Instant::now();
        let seen = tokio::task::spawn_blocking(move || seen.join()).await?;
        let seen = seen.map_err(|_| anyhow::anyhow!("the poller panicked"))??;
        delays.push(seen.saturating_duration_since(acknowledged).as_secs_f64() * 1e3);
    }
    let (half, most) = (crate::quantile(delays.clone(), 0.5), crate::quantile(delays, 0.99));
    Ok(Row::alone("a Record's change to the first answer with it, p50 / p99", format!("{half:.2} ms / {most:.2} ms")))
}

/// Asks without pause until the answer ends with `wanted`.
fn poll(wanted: Ipv4Addr) -> Result<Instant> {
    // bench.default.formation.internal A IN, no EDNS, so that the address is the answer's end (RFC 1035, section 4.1).
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["bench", "default", "formation", "internal"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.1:53")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (start, mut answer) = (Instant::now(), [0; 512]);
    loop {
        socket.send(&query)?;
        let length = socket.recv(&mut answer)?;
        if answer.get(..length).context("an answer")?.ends_with(&wanted.octets()) {
            return Ok(Instant::now());
        }
        ensure!(start.elapsed() < PATIENCE, "{wanted} is never answered");
    }
}
