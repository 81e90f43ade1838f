"""An institution's processes and its way to the agency: enrolment, gateway, supernode, lane, sandbox, supervisor."""
