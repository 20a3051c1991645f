//! One message in, its answer out.
//!
//! What is answered is decided in [`crate::zone`]; here it is only fitted into a message:
//!
//! ```text
//! not even a header, or a response ......... nothing
//! not a query .............................. NOTIMP
//! not one question, or broken .............. FORMERR
//! EDNS of a version we do not know ......... BADVERS
//! a transfer, a class that is not IN ....... REFUSED
//! a name that is in none of our zones ...... REFUSED
//! all else ................................. an Answer
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use crate::zone::{Answer, Zones};

/// Answers messages out of [`Zones`].
///
/// [`Handler::respond`] is for datagrams and streams that the caller reads itself; as a hickory [`RequestHandler`], the
/// handler serves the encrypted transports of hickory's server, too.
#[derive(Debug, Clone)]
pub struct Handler {
    zones: Arc<Zones>,
}

/// The largest answer over UDP, in bytes: what passes everywhere in one piece (DNS Flag Day 2020).
pub const MAX_UDP_ANSWER: u16 = 1232;

impl Handler {
    /// Answers out of `zones`, always their latest state.
    pub fn new(zones: Arc<Zones>) -> Self {
        Self { zones }
    }

    /// The answer to `message`, which came from `source` and is not trusted; `None` if none is due.
    ///
    /// Over [`Protocol::Udp`] the answer has at most [`MAX_UDP_ANSWER`] bytes, and no more than the client said it takes.
    pub fn respond(&self, message: &[u8], source: SocketAddr, protocol: Protocol) -> Option<Vec<u8>> {
        let Header { metadata, counts } = Header::read(&mut BinDecoder::new(message)).ok()?;
        // An answer to an answer would let two servers talk forever.
        if metadata.message_type != MessageType::Query {
            return None;
        }
        if metadata.op_code != OpCode::Query {
            return bare(&metadata, ResponseCode::NotImp);
        }
        // Before anything is parsed: hickory would set memory aside for as many questions as the header claims.
        if counts.queries != 1 {
            return bare(&metadata, ResponseCode::FormErr);
        }
        let Ok(request) = Request::from_bytes(message.to_vec(), source, protocol) else {
            return bare(&metadata, ResponseCode::FormErr);
        };
        encode(&request, &self.reply(&request))
    }

    fn reply(&self, request: &Request) -> Reply {
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_ANSWER);
            // RFC 3225, section 3: DO is copied, although nothing is signed yet.
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let code = |code| Reply { code, edns: edns.clone(), answer: Answer::default() };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return code(ResponseCode::BADVERS);
        }
        let [query] = request.queries.queries() else { return code(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return code(ResponseCode::Refused);
        }
        match self.zones.lookup(query.original().name(), query.query_type()) {
            Some(answer) => {
                let code = if answer.exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
                Reply { code, edns, answer }
            }
            None => code(ResponseCode::Refused),
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let reply = match request.metadata.op_code {
            OpCode::Query => self.reply(request),
            _ => Reply { code: ResponseCode::NotImp, edns: None, answer: Answer::default() },
        };
        let metadata = reply.metadata(request);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &reply.edns {
            builder.edns(edns);
        }
        let Answer { answers, authorities, additionals, .. } = &reply.answer;
        let sent = response.send_response(builder.build(metadata, answers, authorities, &[], additionals)).await;
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, client = %request.src(), "an answer was not sent");
            Header { metadata, counts: HeaderCounts::default() }.into()
        })
    }
}

struct Reply {
    code: ResponseCode,
    edns: Option<Edns>,
    answer: Answer,
}

impl Reply {
    fn metadata(&self, request: &Request) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = self.code;
        metadata.authoritative =
            self.answer.authoritative && matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain);
        metadata
    }
}

/// The message for `reply`: whole; or else without the additional section, which may be left out silently; or else
/// (RFC 2181, section 9) with TC set and nothing in it that a client might take for all there is.
fn encode(request: &Request, reply: &Reply) -> Option<Vec<u8>> {
    let limit = match request.protocol() {
        Protocol::Udp => request.max_payload().clamp(512, MAX_UDP_ANSWER),
        _ => u16::MAX,
    };
    let Answer { answers, authorities, additionals, .. } = &reply.answer;
    let metadata = reply.metadata(request);
    let attempt = |metadata, answers: &[Record], authorities: &[Record], additionals: &[Record]| {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &reply.edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, answers, authorities, &[], additionals);
        let info = response.destructive_emit(&mut encoder).ok()?;
        Some((bytes, info.truncation))
    };

    let fits = |attempt: Option<(Vec<u8>, bool)>| attempt.filter(|(_, truncated)| !truncated).map(|(bytes, _)| bytes);
    let whole = fits(attempt(metadata, answers, authorities, additionals));
    let whole = whole.or_else(|| fits(attempt(metadata, answers, authorities, &[])));
    whole.or_else(|| {
        let mut metadata = metadata;
        metadata.truncation = true;
        attempt(metadata, &[], &[], &[]).map(|(bytes, _)| bytes)
    })
}

/// A header and nothing else, for messages that are not worth more.
fn bare(request: &Metadata, code: ResponseCode) -> Option<Vec<u8>> {
    let mut metadata = Metadata::response_from_request(request);
    metadata.response_code = code;
    Header { metadata, counts: HeaderCounts::default() }.to_bytes().ok()
}

#[cfg(test)]
mod tests;
