import pytest

from training_fsm.startup import SchemaBehind, require_schema
from training_fsm.store.engine import make_engine
from training_fsm.store.migrate import migrate


def test_a_database_of_another_version_is_refused_until_it_is_migrated(database_url: str) -> None:
    """A role does not serve on an empty database and says what to run; after `migrate` it does."""
    engine = make_engine(database_url, application_name="tests")
    with pytest.raises(SchemaBehind, match="training-fsm migrate"):
        require_schema(engine)
    migrate(engine)
    require_schema(engine)
    engine.dispose()
