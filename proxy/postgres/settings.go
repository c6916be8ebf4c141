package postgres

import (
	"slices"
	"strings"
)

// pinned settings carry the meaning of SQL: what the parser and the decision take for granted. They are
// given to the target at connect and refused everywhere else.
var pinned = map[string]string{
	"search_path":                    "", // configured
	"standard_conforming_strings":    "on",
	"client_encoding":                "UTF8",
	"backslash_quote":                "safe_encoding",
	"quote_all_identifiers":          "off",
	"transform_null_equals":          "off",
	"array_nulls":                    "on",
	"escape_string_warning":          "on",
	"row_security":                   "on",
	"session_replication_role":       "origin",
	"default_transaction_deferrable": "",
	"role":                           "",
	"session_authorization":          "",
	"local_preload_libraries":        "",
	"session_preload_libraries":      "",
	"dynamic_library_path":           "",
	"default_tablespace":             "",
	"temp_tablespaces":               "",
	"xmlbinary":                      "",
	"xmloption":                      "",
	"log_statement":                  "",
	"application_name":               "",
}

// isPinned says that nobody sets it, whatever policy says. Names are in lower case.
func isPinned(name string) bool {
	_, ok := pinned[name]
	return ok
}

// pinnedSame says that the value is the one that is pinned anyway, or does no harm.
func pinnedSame(name, value string) bool {
	switch name {
	case "client_encoding":
		v := strings.ToLower(strings.Map(func(r rune) rune {
			if r == '-' || r == '_' || r == '\'' || r == ' ' {
				return -1
			}
			return r
		}, value))
		return v == "utf8" || v == "unicode"
	case "standard_conforming_strings":
		on, ok := parseBool(value)
		return ok && on
	case "row_security":
		// Off shows no row more: what a row policy would filter is an error then. pg_dump wants it so.
		_, ok := parseBool(value)
		return ok
	}
	return false
}

// harmlessSettings change how values are shown or how long things may take, and nothing that a decision
// or a masker relies on. Setting one is part of having a session.
var harmlessSettings = []string{
	"bytea_output", "client_min_messages", "datestyle", "default_transaction_isolation",
	"extra_float_digits", "idle_in_transaction_session_timeout", "idle_session_timeout", "intervalstyle",
	"jit", "lc_messages", "lc_monetary", "lc_numeric", "lc_time", "lock_timeout", "statement_timeout", "timezone",
	"transaction_deferrable", "transaction_isolation", "transaction_read_only", "default_transaction_read_only",
	"synchronize_seqscans",
}

func isHarmlessSetting(name string) bool { return slices.Contains(harmlessSettings, name) }
