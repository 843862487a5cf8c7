use super::*;

const ESP: HardDrive = HardDrive {
    number: 1,
    start: 2048,
    length: 0x1_0000,
    guid: [7; 16],
};

/// Firmware in memory, with room for so many more writes.
#[derive(Debug)]
struct Memory {
    variables: BTreeMap<String, Vec<u8>>,
    room: usize,
}

impl Variables for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.variables.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.variables.get(name).cloned())
    }

    fn write(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        self.room = self.room.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        self.variables.insert(name.to_owned(), value.to_vec());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.variables.remove(name);
        Ok(())
    }
}

fn done(variables: &mut dyn Variables) -> Plan {
    match register(variables, ESP, 3).unwrap() {
        Registered::Done(plan) => plan,
        Registered::Refused(error) => panic!("{error}"),
    }
}

#[test]
fn three_tries_make_four_options_once_and_the_loaders_path_is_the_firmwares() {
    let directory = tempfile::tempdir().unwrap();
    let foreign = "Boot0000-11111111-2222-3333-4444-555555555555";
    fs::write(directory.path().join(foreign), "of another vendor").unwrap();
    let mut variables = EfiVariables::of(directory.path());
    assert_eq!(done(&mut variables).steps.len(), 5);
    assert!(done(&mut variables).is_empty());

    let order = fs::read(variables.path(BOOT_ORDER)).unwrap();
    assert_eq!(order, [7, 0, 0, 0, 0, 0, 1, 0, 2, 0, 3, 0]);
    let option = variables.read("Boot0003").unwrap().unwrap();
    let option = firmware::LoadOption::decode(&option).unwrap();
    assert_eq!(option.description, "Bedplate (4)");
    assert!(option.starts(&ESP, "\\EFI\\systemd\\systemd-bootx64.efi"));
}

#[test]
fn firmware_that_is_full_has_an_order_that_names_nothing_missing_and_is_finished_later() {
    for room in 0..5 {
        let mut variables = Memory {
            variables: BTreeMap::new(),
            room,
        };
        let refused = register(&mut variables, ESP, 3).unwrap();
        assert!(matches!(
            refused,
            Registered::Refused(RefusedError::Write { .. })
        ));
        assert_eq!(variables.read(BOOT_ORDER).unwrap(), None);
        variables.room = 9;
        done(&mut variables);
        assert_eq!(
            variables.room,
            9 - (5 - room),
            "something was written twice"
        );
    }
}

#[test]
fn a_machine_without_variables_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut variables = EfiVariables::of(&directory.path().join("efivars"));
    assert!(matches!(
        register(&mut variables, ESP, 3).unwrap(),
        Registered::Refused(RefusedError::Read(_))
    ));
}

#[test]
fn a_file_without_attributes_is_no_variable_and_removing_twice_is_removing() {
    let directory = tempfile::tempdir().unwrap();
    let mut variables = EfiVariables::of(directory.path());
    fs::write(variables.path("Boot0001"), [7, 0]).unwrap();
    assert_eq!(variables.read("Boot0001").unwrap(), None);
    variables.remove("Boot0001").unwrap();
    variables.remove("Boot0001").unwrap();
    assert_eq!(variables.names().unwrap(), Vec::<String>::new());
}
