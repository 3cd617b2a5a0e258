//! What the service accounts of pods say: the role that one names by an annotation, as it is written
//! for EKS ("IAM roles for service accounts").

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use lru::LruCache;

use super::names::{is_label, is_subdomain};
use crate::config::role::role_arn;

/// Names the role. Fact: EKS user guide, "Assign IAM roles to Kubernetes service accounts".
pub(crate) const ANNOTATION: &str = "eks.amazonaws.com/role-arn";
/// Longest wait for the API server.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer counts.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Answers that are kept.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// Most of an annotation that an error repeats, in characters.
const REPEATED_MAX: usize = 100;

/// A service account.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Account {
    namespace: String,
    name: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.name)
    }
}

impl Account {
    /// The one of these names, which become parts of a path; `None` where they are none.
    pub(crate) fn new(namespace: &str, name: &str) -> Option<Self> {
        (is_label(namespace) && is_subdomain(name))
            .then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Why the role of a service account is not known: what is wrong, where, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoRole {
    /// Its annotation is none.
    #[error(
        "the annotation {ANNOTATION} of {account} is {text:?}, which is no ARN of a role \
         (arn:aws:iam::ACCOUNT:role/NAME): {why}"
    )]
    Malformed {
        /// Whose.
        account: Account,
        /// The beginning of it.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such account.
    #[error(
        "{0} is not there, so that nothing names a role of the pod; make it, or start the pod anew"
    )]
    NotFound(Account),
    /// It may not be read.
    #[error(
        "the node plugin may not read {0}, whose annotation {ANNOTATION} is to name the role: set \
         podIdentity.roleFromServiceAccount of the chart, which grants it (get of serviceaccounts), or \
         name a roleArn in the volume"
    )]
    Forbidden(Account),
    /// Nobody answers, or not to the question.
    #[error("the role that {account} names could not be asked for at the API server: {why}")]
    Unanswered {
        /// Whose.
        account: Account,
        /// What happened.
        why: String,
    },
}

/// The roles of service accounts. What the API server answers is kept for five minutes, failures are
/// not.
pub(crate) struct Accounts {
    client: Option<Client>,
    kept: Mutex<LruCache<Account, (Instant, Option<String>)>>,
}

impl Accounts {
    /// As this API server knows them; without one nothing is known.
    pub(crate) fn new(client: Option<Client>) -> Self {
        Self { client, kept: Mutex::new(LruCache::new(KEPT_MAX)) }
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<Account, (Instant, Option<String>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ARN of the role that a service account names; `None` where it names none.
    ///
    /// # Errors
    /// Why that is not known.
    pub(crate) async fn role(&self, account: &Account) -> Result<Option<String>, NoRole> {
        self.role_at(account, Instant::now()).await
    }

    /// Asks anew the next time.
    pub(crate) fn forget(&self, account: &Account) {
        self.kept().pop(account);
    }

    async fn role_at(&self, account: &Account, now: Instant) -> Result<Option<String>, NoRole> {
        if let Some((at, role)) = self.kept().get(account)
            && now.saturating_duration_since(*at) < KEPT_FOR
        {
            return Ok(role.clone());
        }
        let role = self.ask(account).await?;
        self.kept().put(account.clone(), (now, role.clone()));
        Ok(role)
    }

    async fn ask(&self, account: &Account) -> Result<Option<String>, NoRole> {
        let unanswered = |why: String| NoRole::Unanswered { account: account.clone(), why };
        let Some(client) = &self.client else {
            return Err(unanswered(
                "the node plugin is in no cluster, or its log says more".into(),
            ));
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &account.namespace);
        // The annotations are part of the metadata: no more is asked for.
        let asked = tokio::time::timeout(DEADLINE, accounts.get_metadata(&account.name)).await;
        let told = match asked {
            Ok(Ok(told)) => told,
            Ok(Err(kube::Error::Api(status))) => {
                return Err(match status.code {
                    403 => NoRole::Forbidden(account.clone()),
                    404 => NoRole::NotFound(account.clone()),
                    code => unanswered(format!("it answers {code}: {}", status.message)),
                });
            }
            Ok(Err(error)) => return Err(unanswered(error.to_string())),
            Err(_) => return Err(unanswered(format!("no answer in {} s", DEADLINE.as_secs()))),
        };
        let annotations = told.metadata.annotations.unwrap_or_default();
        // One that is empty is how it is taken away where a template keeps its line.
        let Some(text) = annotations.get(ANNOTATION).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        match role_arn(text) {
            Ok(role) => Ok(Some(role.to_owned())),
            Err(why) => {
                let text = text.chars().take(REPEATED_MAX).collect();
                Err(NoRole::Malformed { account: account.clone(), text, why })
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod twin {
    use std::convert::Infallible;
    use std::sync::Arc;

    use hyper::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server of a test, and what it is asked for.
    #[derive(Clone, Default)]
    pub(crate) struct Server {
        answer: Arc<Mutex<(u16, Value)>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        /// All accounts have this annotation, or none.
        pub(crate) fn annotate(&self, role: Option<&str>) {
            let annotations = role.map(|role| json!({ANNOTATION: role, "other": "x"}));
            let metadata = json!({"name": "app", "namespace": "team", "annotations": annotations});
            let kind = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": metadata,
            });
            *self.answer.lock().unwrap() = (200, kind);
        }

        /// It answers so instead.
        pub(crate) fn refuse(&self, code: u16, message: &str) {
            let status = json!({
                "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
                "message": message,
            });
            *self.answer.lock().unwrap() = (code, status);
        }

        /// Methods and paths of what it was asked.
        pub(crate) fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }

        /// Accounts as it knows them.
        pub(crate) fn accounts(&self) -> Accounts {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let line = format!("{} {}", request.method(), request.uri().path());
                server.asked.lock().unwrap().push(line);
                let (code, answer) = server.answer.lock().unwrap().clone();
                let answer = Response::builder()
                    .status(StatusCode::from_u16(code).unwrap())
                    .body(Body::from(answer.to_string().into_bytes()));
                async move { Ok::<_, Infallible>(answer.unwrap()) }
            });
            Accounts::new(Some(Client::new(service, "default")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::twin::Server;
    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/reader";

    fn account(name: &str) -> Account {
        Account::new("team", name).unwrap()
    }

    #[tokio::test]
    async fn the_annotation_of_a_service_account_names_its_role() {
        let server = Server::default();
        let accounts = server.accounts();
        server.annotate(Some(ROLE));
        assert_eq!(accounts.role(&account("app")).await, Ok(Some(ROLE.to_owned())));
        assert_eq!(server.asked(), ["GET /api/v1/namespaces/team/serviceaccounts/app"]);
        for none in [None, Some("")] {
            server.annotate(none);
            accounts.forget(&account("app"));
            assert_eq!(accounts.role(&account("app")).await, Ok(None));
        }
    }

    #[tokio::test]
    async fn an_answer_counts_for_five_minutes_and_a_failure_not_at_all() {
        let server = Server::default();
        let (accounts, app) = (server.accounts(), account("app"));
        let start = Instant::now();
        server.refuse(403, "forbidden");
        for _ in 0..2 {
            accounts.role_at(&app, start).await.unwrap_err();
        }
        server.annotate(Some("reader"));
        accounts.role_at(&app, start).await.unwrap_err();
        assert_eq!(server.asked().len(), 3);
        server.annotate(Some(ROLE));
        assert_eq!(accounts.role_at(&app, start).await, Ok(Some(ROLE.to_owned())));
        let other = "arn:aws:iam::111122223333:role/writer";
        server.annotate(Some(other));
        let before = start + KEPT_FOR - Duration::from_secs(1);
        assert_eq!(accounts.role_at(&app, before).await, Ok(Some(ROLE.to_owned())));
        assert_eq!(server.asked().len(), 4);
        assert_eq!(accounts.role_at(&account("web"), before).await, Ok(Some(other.to_owned())));
        let after = start + KEPT_FOR;
        assert_eq!(accounts.role_at(&app, after).await, Ok(Some(other.to_owned())));
        assert_eq!(server.asked().len(), 6);
    }

    #[tokio::test]
    async fn a_bounded_number_of_answers_is_kept() {
        let server = Server::default();
        let accounts = server.accounts();
        server.annotate(Some(ROLE));
        for at in 0..=KEPT_MAX.get() {
            accounts.role(&account(&format!("app-{at}"))).await.unwrap();
        }
        assert_eq!(accounts.kept().len(), KEPT_MAX.get());
    }

    #[tokio::test]
    async fn whatever_goes_wrong_is_told_with_the_account_and_what_to_do() {
        let server = Server::default();
        let (accounts, app) = (server.accounts(), account("app"));
        server.refuse(403, "serviceaccounts \"app\" is forbidden");
        let told = accounts.role(&app).await.unwrap_err();
        assert_eq!(told, NoRole::Forbidden(app.clone()));
        let words = ["team/app", "podIdentity.roleFromServiceAccount", "roleArn"];
        assert!(words.iter().all(|word| told.to_string().contains(word)), "{told}");
        server.refuse(404, "not found");
        let told = accounts.role(&app).await.unwrap_err();
        assert_eq!(told, NoRole::NotFound(app.clone()));
        server.refuse(500, "etcd is away");
        let told = accounts.role(&app).await.unwrap_err().to_string();
        assert!(told.contains("500: etcd is away") && told.contains("team/app"), "{told}");
        // However long, and whatever it holds, little of it is repeated.
        server.annotate(Some(&format!("arn:aws:iam::1:user/x\n{}", "y".repeat(10_000))));
        let told = accounts.role(&app).await.unwrap_err().to_string();
        assert!(told.contains(ANNOTATION) && told.contains("arn:aws:iam::1:user/x"), "{told}");
        assert!(told.len() < 500 && !told.contains('\n'), "{told}");
        let nowhere = Accounts::new(None).role(&app).await.unwrap_err().to_string();
        assert!(nowhere.contains("no cluster"), "{nowhere}");
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_no_account() {
        assert_eq!(account("my.app-1").to_string(), "service account team/my.app-1");
        let long = "a".repeat(254);
        for name in ["", "..", ".", "a/b", "app?x=y", "App", "-a", "a b", "%2e", &*long] {
            assert_eq!(Account::new("team", name), None, "{name:?}");
            assert_eq!(Account::new(name, "app"), None, "{name:?}");
        }
        assert_eq!(Account::new("te.am", "app"), None);
    }
}
