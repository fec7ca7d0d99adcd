package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rootless-sbx/sbx/userns"
)

const singleID = ": sandboxes get a single id (--userns single)"

func checkSubIDs(_ context.Context, e Env) Check {
	c := Check{Name: "subordinate-ids", Status: OK}
	s, err := userns.Inspect(e.Mapping)
	if err == nil {
		err = s.SubIDErr
	}
	if err != nil {
		c.Status, c.Detail = Degraded, err.Error()+singleID
		c.Fix = fixOf(err)
		if s != nil && s.Direct && e.UID == 0 {
			c.Status, c.Detail, c.Fix = OK, "none, and root needs none: the ids that exist here are used as they are", ""
		}
		return c
	}
	c.Data = s
	c.Detail = fmt.Sprintf("%d uids and %d gids from %s", s.UIDs, s.GIDs, s.Source)
	if min(s.UIDs, s.GIDs) < 65535 {
		c.Status, c.Fix = Degraded, s.Fix
		c.Detail += ": images that use higher ids will fail"
	}
	if len(s.Notes) > 0 {
		c.Detail += " (" + strings.Join(s.Notes, "; ") + ")"
	}
	return c
}

func checkHelpers(_ context.Context, e Env) Check {
	c := Check{Name: "newuidmap", Status: OK}
	s, err := userns.Inspect(e.Mapping)
	switch {
	case err != nil:
		c.Status, c.Detail = Degraded, err.Error()
	case s.Direct:
		c.Detail = "not needed: this process may map ids itself"
	case s.HelperErr != nil:
		c.Status, c.Detail, c.Fix = Degraded, s.HelperErr.Error()+singleID, fixOf(s.HelperErr)
	default:
		c.Detail = s.NewUIDMap + " and " + s.NewGIDMap
		c.Data = map[string]any{"newuidmap": s.NewUIDMap, "newgidmap": s.NewGIDMap}
	}
	return c
}

func fixOf(err error) string {
	var e *userns.Error
	if errors.As(err, &e) {
		return e.Fix
	}
	return ""
}
