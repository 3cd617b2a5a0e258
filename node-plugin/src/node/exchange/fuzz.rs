use weir_fuzz::told::Told;
use weir_fuzz::{inputs, near};

use super::*;

const CORPUS: &[u8] = include_bytes!("../../../tests/corpus/sts-answers");

#[test]
fn whatever_a_token_service_answers_the_token_is_not_repeated() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = Told::default();
    let sts_url = Some("http://sts.example".to_owned());
    let (http, retry) = (told.client(), RetryConfig::disabled());
    let sts = Exchange { sts_url, http, agent: None, retry };
    let web = WebIdentity {
        token: "header.payload.signature".into(),
        expires: None,
        role_arn: Some("arn:aws:iam::111122223333:role/r".into()),
        region: None,
        account: "default/sa".into(),
        through: Through::Sts,
    };
    near(&inputs(CORPUS), |answer| {
        told.tell(answer);
        if let Err(error) = runtime.block_on(sts.trade(&web)) {
            let text = DisplayErrorContext(&error).to_string();
            assert!(!text.contains(&web.token), "{text}");
            assert!(text.len() <= 8192 && !text.chars().any(char::is_control), "{text:?}");
        }
    });
}
