//! Which job it is, among all that were ever called so; and the token that those who work for it share.

use super::{store::StoreError, Store};
use crate::{host::Host, link::Token};
use serde::{Deserialize, Serialize};

/// What is drawn when a job begins, and kept with its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// A name that no other job has or had: of the process that began it.
    pub id: String,
    /// What opens the ports of its coordinators and workers.
    token: Token,
}

impl Identity {
    /// What opens the ports of its coordinators and workers.
    pub(crate) fn token(&self) -> Token {
        self.token
    }
}

impl Store {
    /// Which job it is; nothing if it has never begun.
    pub async fn identity(&self) -> Result<Option<Identity>, StoreError> {
        let path = self.identity_path();
        let Some(bytes) = self.get(&path).await? else {
            return Ok(None);
        };
        let identity = serde_json::from_slice(&bytes).map_err(|error| StoreError::Damaged {
            path: path.to_string(),
            what: error.to_string(),
        })?;
        Ok(Some(identity))
    }

    /// Which job it is; a job that has never begun is given its identity, whoever is the first to ask.
    pub async fn identify(&self, host: &Host) -> Result<Identity, StoreError> {
        loop {
            if let Some(identity) = self.identity().await? {
                return Ok(identity);
            }
            let identity = Identity {
                id: host.instance.to_string(),
                token: Token::of(host.entropy.draw()),
            };
            let json = serde_json::to_vec_pretty(&identity).expect("plain data");
            // Whoever was the first, and whether an answer was lost: what stands there counts.
            self.create(&self.identity_path(), &json).await?;
        }
    }
}
