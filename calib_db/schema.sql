-- The tables of a vqkvc store, as they are today.
--
-- A store is recognised by its application_id and by the text of its schema, statement for
-- statement (kvdb.c). So any change between CREATE and the semicolon, be it white space, is a new
-- schema version: change this file and add a step to the list of migrations, in the same words.
--
-- There are no times: rows are ordered by id. References go by hash, not by id, so that they mean
-- the same in every store.

-- A model, known by the hash of its weights.
CREATE TABLE model (
    id INTEGER PRIMARY KEY,
    weights TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    arch TEXT NOT NULL,
    geometry TEXT NOT NULL
) STRICT;

-- Contents, known by the hash of their n bytes. The bytes are cut into chunks, because SQLite has
-- a limit of 1e9 bytes a value and captures of large models are larger.
CREATE TABLE blob (
    hash TEXT NOT NULL PRIMARY KEY,
    n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE blob_chunk (
    hash TEXT NOT NULL REFERENCES blob (hash),
    i INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (hash, i)
) STRICT;

-- Everything that was computed. recipe_hash stands for kind and recipe together; model is NULL for
-- what belongs to no model.
CREATE TABLE artifact (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    recipe TEXT NOT NULL,
    recipe_hash TEXT NOT NULL UNIQUE,
    content TEXT NOT NULL REFERENCES blob (hash),
    model TEXT REFERENCES model (weights),
    error_measure TEXT NOT NULL,
    error REAL NOT NULL
) STRICT;

-- What an artifact was made from, in the order in which it was stated.
CREATE TABLE artifact_parent (
    child TEXT NOT NULL REFERENCES artifact (recipe_hash),
    i INTEGER NOT NULL,
    parent TEXT NOT NULL REFERENCES artifact (recipe_hash),
    PRIMARY KEY (child, i)
) STRICT, WITHOUT ROWID;

CREATE TABLE evaluation (
    id INTEGER PRIMARY KEY,
    plan TEXT NOT NULL REFERENCES artifact (recipe_hash),
    text TEXT NOT NULL,
    label TEXT NOT NULL,
    result TEXT NOT NULL,
    UNIQUE (plan, text, label)
) STRICT;

-- Since version 2: the way back along references, for `show`, `gc` and the checks of deletions.
CREATE INDEX artifact_by_content ON artifact (content);
CREATE INDEX artifact_parent_by_parent ON artifact_parent (parent);
