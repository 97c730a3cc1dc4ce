//! Extensions of DataFusion's options that are no settings: they have no text, and show nowhere.

/// Makes the `Copy` type one, whose prefix nobody else may have.
macro_rules! hidden_option {
    ($type:ty, $prefix:literal) => {
        impl datafusion::common::config::ConfigExtension for $type {
            const PREFIX: &'static str = $prefix;
        }

        impl datafusion::common::config::ExtensionOptions for $type {
            fn as_any(&self) -> &dyn std::any::Any {
                self
            }

            fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
                self
            }

            fn cloned(&self) -> Box<dyn datafusion::common::config::ExtensionOptions> {
                Box::new(*self)
            }

            fn set(&mut self, key: &str, _: &str) -> datafusion::common::Result<()> {
                datafusion::common::config_err!("there is no setting {key}")
            }

            fn entries(&self) -> Vec<datafusion::common::config::ConfigEntry> {
                Vec::new()
            }
        }
    };
}

pub(crate) use hidden_option;
