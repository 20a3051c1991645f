use std::sync::LazyLock;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData};
use proptest::prelude::*;

use super::*;
use crate::testing::{cluster, name};

static HANDLER: LazyLock<Handler> = LazyLock::new(|| Handler::new(cluster()));

fn source() -> SocketAddr {
    "192.0.2.7:4242".parse().unwrap()
}

fn question(qname: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(qname).unwrap(), rtype));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.edns = Some(edns);
    message
}

fn raw(message: &Message, protocol: Protocol) -> Vec<u8> {
    HANDLER.respond(&message.to_vec().unwrap(), source(), protocol).unwrap()
}

fn ask(message: &Message) -> Message {
    Message::from_vec(&raw(message, Protocol::Udp)).unwrap()
}

fn code(message: &Message) -> ResponseCode {
    ask(message).metadata.response_code
}

#[test]
fn rfc1035_4_1_1_the_header_of_an_answer_copies_id_and_rd_and_sets_qr_and_aa() {
    let answer = ask(&question("hello.default.formation.internal.", RecordType::A));
    let metadata = answer.metadata;
    assert_eq!((metadata.id, metadata.message_type, metadata.op_code), (4711, MessageType::Response, OpCode::Query));
    assert!(metadata.authoritative && metadata.recursion_desired && !metadata.recursion_available);
    assert_eq!(answer.answers[0].data, RData::A("100.64.0.10".parse().unwrap()));
}

#[test]
fn rfc2308_2_1_nxdomain_has_the_soa_in_authority_with_the_negative_ttl() {
    let answer = ask(&question("nothing.formation.internal.", RecordType::A));
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.metadata.authoritative && answer.answers.is_empty());
    assert_eq!((answer.authorities[0].record_type(), answer.authorities[0].ttl), (RecordType::SOA, 30));
}

#[test]
fn rfc2308_2_2_nodata_is_noerror_with_the_soa_in_authority() {
    let answer = ask(&question("hello.default.formation.internal.", RecordType::TXT));
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty());
    assert_eq!(
        (answer.authorities[0].record_type(), answer.authorities[0].name.to_ascii()),
        (RecordType::SOA, "formation.internal.".into())
    );
}

#[test]
fn rfc4343_3_names_match_in_any_case_and_the_question_keeps_its_own() {
    let answer = ask(&question("hElLo.DeFaUlT.formation.INTERNAL.", RecordType::A));
    assert_eq!(answer.queries[0].name().to_ascii(), "hElLo.DeFaUlT.formation.INTERNAL.");
    assert_eq!(answer.answers[0].name.to_ascii(), "hElLo.DeFaUlT.formation.INTERNAL.");
}

#[test]
fn rfc1035_3_3_9_and_rfc2782_targets_come_with_their_addresses() {
    let mx = ask(&question("example.org.", RecordType::MX));
    assert_eq!(mx.additionals[0].name, name("mail.example.org."));
    let srv = ask(&question("_http._tcp.example.org.", RecordType::SRV));
    assert_eq!(srv.additionals.len(), 2);
}

#[test]
fn rfc2181_9_an_answer_that_does_not_fit_is_empty_and_truncated_and_still_has_its_opt() {
    let answer = ask(&with_edns(question("big.example.org.", RecordType::A), 4096));
    assert!(answer.metadata.truncation && answer.answers.is_empty() && answer.edns.is_some());
    assert!(ask(&question("big.example.org.", RecordType::A)).metadata.truncation);
}

#[test]
fn rfc7766_5_over_tcp_the_answer_is_whole() {
    let bytes = raw(&question("big.example.org.", RecordType::A), Protocol::Tcp);
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), 200);
}

#[test]
fn rfc1035_4_2_1_without_edns_an_answer_has_at_most_512_bytes() {
    for (qname, rtype) in [("big.example.org.", RecordType::A), ("_http._tcp.example.org.", RecordType::SRV)] {
        assert!(raw(&question(qname, rtype), Protocol::Udp).len() <= 512);
    }
}

#[test]
fn rfc6891_6_1_1_an_answer_has_an_opt_exactly_if_the_question_has() {
    let edns = ask(&with_edns(question("hello.default.formation.internal.", RecordType::A), 1400)).edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload()), (0, MAX_UDP_ANSWER));
    assert!(ask(&question("hello.default.formation.internal.", RecordType::A)).edns.is_none());
}

#[test]
fn rfc6891_6_1_3_an_unknown_version_is_badvers() {
    let mut message = with_edns(question("hello.default.formation.internal.", RecordType::A), 1400);
    message.edns.as_mut().unwrap().set_version(1);
    let answer = ask(&message);
    // 16 is BADVERS in an OPT and BADSIG in a TSIG; hickory reads it as the latter.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty() && !answer.metadata.authoritative);
}

#[test]
fn rfc8482_4_2_any_is_answered_with_one_small_record() {
    let answer = ask(&question("big.example.org.", RecordType::ANY));
    assert_eq!((answer.answers.len(), answer.answers[0].record_type()), (1, RecordType::HINFO));
    assert_eq!(code(&question("nothing.example.org.", RecordType::ANY)), ResponseCode::NXDomain);
}

#[test]
fn rfc1035_4_1_1_names_that_are_not_ours_are_refused() {
    for qname in ["example.com.", ".", "internal.", "xformation.internal."] {
        let answer = ask(&question(qname, RecordType::A));
        assert_eq!(
            (answer.metadata.response_code, answer.metadata.authoritative),
            (ResponseCode::Refused, false),
            "{qname}"
        );
    }
}

#[test]
fn rfc5936_2_2_1_and_rfc1995_2_transfers_are_refused() {
    for rtype in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&question("example.org.", rtype)), ResponseCode::Refused);
    }
}

#[test]
fn rfc1035_3_2_4_classes_other_than_in_are_refused() {
    for class in [DNSClass::CH, DNSClass::ANY] {
        let mut message = question("hello.default.formation.internal.", RecordType::A);
        message.queries[0].set_query_class(class);
        assert_eq!(code(&message), ResponseCode::Refused);
    }
}

#[test]
fn rfc2136_2_2_and_rfc1996_updates_and_notifies_are_not_implemented() {
    for op_code in [OpCode::Update, OpCode::Notify, OpCode::Status] {
        let mut message = question("example.org.", RecordType::SOA);
        message.metadata.op_code = op_code;
        let answer = ask(&message);
        assert_eq!((answer.metadata.response_code, answer.metadata.op_code), (ResponseCode::NotImp, op_code));
    }
}

#[test]
fn rfc9619_3_a_query_without_exactly_one_question_is_a_format_error() {
    let mut two = question("example.org.", RecordType::SOA);
    two.add_query(Query::query(name("example.org."), RecordType::A));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let none = Message::new(1, MessageType::Query, OpCode::Query);
    assert_eq!(code(&none), ResponseCode::FormErr);
}

#[test]
fn responses_and_fragments_of_a_header_get_no_answer() {
    let mut message = question("example.org.", RecordType::SOA);
    message.metadata.message_type = MessageType::Response;
    assert_eq!(HANDLER.respond(&message.to_vec().unwrap(), source(), Protocol::Udp), None);
    assert_eq!(HANDLER.respond(&[0; 11], source(), Protocol::Udp), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn a_damaged_query_never_panics_and_its_answer_keeps_to_the_limit(
        damage in proptest::collection::vec((0_usize..60, any::<u8>()), 0..6),
        cut in 0_usize..80,
    ) {
        let mut bytes = with_edns(question("www.example.org.", RecordType::A), 1400).to_vec().unwrap();
        for (at, byte) in damage {
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        bytes.truncate(cut.max(1));
        if let Some(answer) = HANDLER.respond(&bytes, source(), Protocol::Udp) {
            prop_assert!(answer.len() <= usize::from(MAX_UDP_ANSWER));
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
    }
}
