package wire

import (
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// Strings are strings of any bytes, as arguments and environments are. JSON has text
// only: one that is not UTF-8 travels as {"bytes": BASE64}.
type Strings []string

type rawString struct {
	Bytes []byte `json:"bytes"`
}

// MarshalJSON implements json.Marshaler.
func (s Strings) MarshalJSON() ([]byte, error) {
	if !slices.ContainsFunc(s, func(x string) bool { return !utf8.ValidString(x) }) {
		return json.Marshal([]string(s))
	}
	list := make([]any, len(s))
	for i, x := range s {
		list[i] = x
		if !utf8.ValidString(x) {
			list[i] = rawString{[]byte(x)}
		}
	}
	return json.Marshal(list)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Strings) UnmarshalJSON(b []byte) error {
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*s = nil
	for _, m := range list {
		var x string
		if len(m) > 0 && m[0] == '{' {
			var raw rawString
			if err := json.Unmarshal(m, &raw); err != nil {
				return err
			}
			x = string(raw.Bytes)
		} else if err := json.Unmarshal(m, &x); err != nil {
			return err
		}
		*s = append(*s, x)
	}
	return nil
}
